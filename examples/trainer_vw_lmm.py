"""Fine-tune VW-LMM on conversations about images with transformers' own Trainer.

    python examples/trainer_vw_lmm.py --output_dir outputs/mine --model_name_or_path outputs/vw-lmm --dataset conversations.json

The file is in LLaVA's layout or holds `messages`; without one, questions about OpenMoji drawings are taken. Every argument of
`TrainingArguments` is accepted. `examples/train_vw_lmm.py` makes such a checkpoint: four stages, LoRA, evaluation, a model card.
"""

from dataclasses import dataclass

import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

from triptych import VwLmmForCausalLM, VwLmmProcessor
from triptych.arguments import argument
from triptych.data.conversations import ConversationCollator, load_conversations
from triptych.data.openmoji_questions import OpenMojiQuestions
from triptych.hardware import best_precision
from triptych.training.optimization import weight_decay_groups


@dataclass
class DataArguments:
    model_name_or_path: str = argument(help="Folder or Hub name of a VW-LMM.")
    dataset: str | None = argument(default=None, help="JSON file or Hub data set. Default: OpenMoji's.")
    image_folder: str | None = argument(default=None, help="Where the paths of a JSON file's images start.")
    visual_loss: str = argument(default="visual_words", help="visual_words, fit_vm_head or none.")


def main() -> None:
    parser = HfArgumentParser((DataArguments, TrainingArguments))
    parser.set_defaults(
        per_device_train_batch_size=16,
        learning_rate=2e-5,
        num_train_epochs=1,
        bf16=best_precision() == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        remove_unused_columns=False,  # the collator turns images and messages into inputs
    )
    args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    processor = VwLmmProcessor.from_pretrained(args.model_name_or_path)
    model = VwLmmForCausalLM.from_pretrained(
        args.model_name_or_path, dtype=torch.float32, visual_loss=args.visual_loss, detach_visual_target=True
    )
    # As in the released code; the VM head is trained in a stage of its own.
    model.model.vision_tower.requires_grad_(False)
    model.vm_head.requires_grad_(args.visual_loss == "fit_vm_head")
    data = OpenMojiQuestions("train") if args.dataset is None else load_conversations(args.dataset, args.image_folder)

    groups = weight_decay_groups(model, training_args.weight_decay, training_args.learning_rate)
    trainer = Trainer(
        model=model,
        args=training_args,
        data_collator=ConversationCollator(processor),
        optimizers=(torch.optim.AdamW(groups), None),  # transformers' own would let norms decay too
        train_dataset=data,
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # weights, code and processor: `from_pretrained` needs no more


if __name__ == "__main__":
    main()
