"""Frames of a clip: from files, lists of pictures or arrays, sampled uniformly or at a rate."""

from pathlib import Path

from PIL import Image
from transformers.utils import is_av_available, is_torchcodec_available
from transformers.video_utils import load_video


def frame_indices(total: int, num_frames: int | None, fps: float | None = None, source_fps: float | None = None):
    """Which frames to take.

    Without `fps` the clip is cut into `num_frames` equal parts, whose middle frames are taken; a shorter clip repeats some.
    With it, frames are taken at that rate from the start, as many as there are or `num_frames`; then the last one repeats.

    Args:
        total (`int`): Frames of the clip.
        num_frames (`int`, *optional*): Frames to take; all of them (or all at `fps`) if not given.
        fps (`float`, *optional*): Frames per second to take.
        source_fps (`float`, *optional*): Frames per second of the clip; needed with `fps`.

    Returns:
        `list[int]` in rising order.
    """
    if fps is None:
        if num_frames is None:
            return list(range(total))
        return [int((index + 0.5) * total / num_frames) for index in range(num_frames)]
    if not source_fps:
        raise ValueError("`fps` needs a video file that states its own rate; frames in memory are sampled uniformly.")
    taken = range(num_frames if num_frames is not None else max(1, round(total * fps / source_fps)))
    return [min(round(index * source_fps / fps), total - 1) for index in taken]


def _is_frame(item) -> bool:
    """Whether an item of a list is one picture: an image, a flat array, or the file of a still one."""
    if isinstance(item, (str, Path)):
        suffix = Path(item).suffix.lower()
        return suffix in Image.registered_extensions() and suffix not in (".gif", ".apng")
    return isinstance(item, Image.Image) or getattr(item, "ndim", None) in (2, 3)


def split_clips(videos) -> list:
    """Single clips out of one clip or several.

    A clip is a path, a list of frames (pictures or their files), or an array of shape `(frames, 3, height, width)` or
    `(frames, height, width, 3)`.
    """
    if isinstance(videos, (str, Path)):
        return [videos]
    if isinstance(videos, (list, tuple)):
        if not videos:
            raise ValueError("`videos` is empty; expected at least one clip.")
        kinds = {_is_frame(item) for item in videos}
        if len(kinds) > 1:
            raise ValueError(
                "`videos` holds single frames beside whole clips; put the frames of a clip into a list of their own."
            )
        return [videos] if kinds == {True} else list(videos)
    if getattr(videos, "ndim", None) == 5:
        return list(videos)
    if getattr(videos, "ndim", None) == 4:
        return [videos]
    raise ValueError(
        "`videos` must be a path, a list of frames, an array of shape (frames, 3, height, width), or a list of these, "
        f"got {type(videos).__name__}" + (f" of shape {tuple(videos.shape)}." if hasattr(videos, "shape") else ".")
    )


def _count_frames(path: str) -> int:
    """Frames of a video file, by its packets; nothing is decoded."""
    try:
        import av
    except ImportError as error:  # torchcodec has counted them already
        raise ImportError("Counting frames needs PyAV: pip install 'triptych[video]'.") from error
    with av.open(path) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def _read_file(path: str, num_frames: int | None, fps: float | None) -> list:
    if not Path(path).is_file():
        raise ValueError(f"`videos`: there is no file {path}.")
    backend = "torchcodec" if is_torchcodec_available() and not is_av_available() else "pyav"
    if backend == "pyav" and not is_av_available():
        raise ImportError("Reading video files needs PyAV or torchcodec: pip install 'triptych[video]'.")
    wanted: list[int] = []

    def choose(metadata, **kwargs) -> list[int]:
        total = metadata.total_num_frames or _count_frames(path)  # Matroska (.webm, .mkv) states none
        wanted.extend(frame_indices(total, num_frames, fps, metadata.fps))
        return sorted(set(wanted))

    try:
        frames, metadata = load_video(str(path), backend=backend, sample_indices_fn=choose)
    except Exception as error:  # decoders raise what they like
        raise ValueError(f"`videos`: {path} cannot be read: {error}") from error
    at = {index: position for position, index in enumerate(metadata.frames_indices)}
    # A header may promise more frames than the file holds.
    return [frames[min(at[index], len(frames) - 1)] for index in wanted]


def read_frames(clip, num_frames: int | None = None, fps: float | None = None) -> list:
    """The sampled frames of one clip, as a list of pictures or arrays.

    Args:
        clip: A path, a list of frames, or an array of frames.
        num_frames, fps: As in [`frame_indices`].

    Raises:
        ValueError: If the clip has no frame or its file cannot be read.
        ImportError: If a file is given and neither PyAV nor torchcodec is installed.
    """
    if isinstance(clip, (str, Path)):
        return _read_file(str(clip), num_frames, fps)
    if not isinstance(clip, (list, tuple)) and not getattr(clip, "ndim", 0):
        raise ValueError(f"`videos` holds {clip!r}; expected a path, a list of frames, or an array of them.")
    if len(clip) == 0:
        raise ValueError("`videos` holds a clip without frames; expected at least one.")
    return [clip[index] for index in frame_indices(len(clip), num_frames, fps)]


__all__ = ["frame_indices", "read_frames", "split_clips"]
