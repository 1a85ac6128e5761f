"""Sparse video tubes (TubeViT, arXiv 2212.03229): a clip becomes a few tokens of different spatio-temporal shape."""

import torch
from torch import nn
from transformers import initialization as init


def tube_grid(size: tuple[int, ...], kernel: list[int], stride: list[int], offset: list[int]) -> list[int]:
    """Tokens of a tube along frames, height and width; 0 or less where the clip is too small for it."""
    return [(n - o - k) // s + 1 for n, k, s, o in zip(size, kernel, stride, offset, strict=True)]


def tube_centers(
    grid: list[int], kernel: list[int], stride: list[int], offset: list[int], device: torch.device
) -> torch.Tensor:
    """Centres of a tube's tokens in frames, pixels, pixels; of shape `(num_tokens, 3)`, last axis fastest."""
    axes = [
        torch.arange(count, device=device) * step + start + length // 2
        for count, length, step, start in zip(grid, kernel, stride, offset, strict=True)
    ]
    return torch.cartesian_prod(*axes)


def fixed_positions(centers: torch.Tensor, hidden_size: int, temperature: float = 10_000.0) -> torch.Tensor:
    """Fixed 3-D sine-cosine position embedding: a third of the channels each for time, height and width.

    Every third holds the sines, then the cosines of `hidden_size // 6` frequencies; what is left of the width is zero.

    Args:
        centers (`torch.Tensor` of shape `(num_tokens, 3)`): In frames, pixels, pixels.
        hidden_size (`int`): Width of the embedding, at least 6.
        temperature (`float`): Longest wavelength over 2 pi.

    Returns:
        `torch.Tensor` of shape `(num_tokens, hidden_size)`, fp32.
    """
    num_frequencies = hidden_size // 6
    exponents = torch.arange(num_frequencies, dtype=torch.float32, device=centers.device) / num_frequencies
    angles = centers.float()[..., None] * temperature**-exponents  # (num_tokens, 3, num_frequencies)
    embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return nn.functional.pad(embedding, (0, hidden_size - embedding.shape[1]))


class TubeEmbedding(nn.Module):
    """Tokens of all tubes, from one learned kernel that is resized (trilinearly) to every tube's shape.

    Args:
        num_channels, hidden_size (`int`): Channels of the frames, width of the tokens.
        kernel_size (`list[int]`): Shape of the learned kernel, in frames, pixels, pixels.
        tubes (`list`): `[kernel, stride, offset]` of every tube.
        initializer_range (`float`): Standard deviation of the initial kernel's sum over frames.
    """

    def __init__(
        self, num_channels: int, hidden_size: int, kernel_size: list[int], tubes: list, initializer_range: float
    ):
        super().__init__()
        self.tubes = tubes
        self.initializer_range = initializer_range
        self.kernel = nn.Parameter(torch.empty(hidden_size, num_channels, *kernel_size))
        self.bias = nn.Parameter(torch.empty(len(tubes), hidden_size))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        # A sum over frames that look alike would make tubes outweigh patches, whose weights have the same range.
        init.normal_(self.kernel, std=self.initializer_range * self.kernel.shape[2] ** -0.5)
        init.zeros_(self.bias)

    @torch.no_grad()
    def inflate(self, patch_kernel: torch.Tensor, patch_bias: torch.Tensor | None) -> None:
        """Start from an image model's patch convolution: resized, repeated over time and divided by its length.

        Args:
            patch_kernel (`torch.Tensor` of shape `(hidden_size, num_channels, patch_size, patch_size)`): Its weight.
            patch_bias (`torch.Tensor` of shape `(hidden_size,)`, *optional*): Its bias.
        """
        frames, height, width = self.kernel.shape[2:]
        resized = nn.functional.interpolate(patch_kernel.float(), (height, width), mode="bilinear")
        self.kernel.copy_(resized[:, :, None].expand(-1, -1, frames, -1, -1) / frames)
        self.bias.copy_(torch.zeros_like(self.bias) if patch_bias is None else patch_bias.expand_as(self.bias))

    def _resized_kernel(self, shape: list[int]) -> torch.Tensor:
        if list(self.kernel.shape[2:]) == list(shape):
            return self.kernel
        return nn.functional.interpolate(self.kernel, size=tuple(shape), mode="trilinear")

    def forward(self, pixel_values_videos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut and project all tubes.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(batch_size, num_frames, num_channels, height, width)`): Clips.

        Returns:
            Tokens of shape `(batch_size, num_tokens, hidden_size)` and their centres of shape `(num_tokens, 3)`.

        Raises:
            ValueError: If the clip is too short or too small for a tube.
        """
        clip = pixel_values_videos.transpose(1, 2)  # (batch, channels, frames, height, width)
        size = tuple(clip.shape[2:])
        tokens, centers = [], []
        for index, (kernel, stride, offset) in enumerate(self.tubes):
            grid = tube_grid(size, kernel, stride, offset)
            if min(grid) < 1:
                frames, height, width = (length + start for length, start in zip(kernel, offset, strict=True))
                raise ValueError(
                    f"`pixel_values_videos` has {size[0]} frames of {size[1]} x {size[2]} pixels; tube {index} needs at "
                    f"least {frames} frames of {height} x {width}. Sample more frames, or change `vision_config.tubes`."
                )
            cropped = clip[:, :, offset[0] :, offset[1] :, offset[2] :]
            tube = nn.functional.conv3d(cropped, self._resized_kernel(kernel), self.bias[index], stride=tuple(stride))
            tokens.append(tube.flatten(2).transpose(1, 2))  # frame by frame, row by row
            centers.append(tube_centers(grid, kernel, stride, offset, clip.device))
        return torch.cat(tokens, dim=1).to(self.kernel.dtype), torch.cat(centers)


__all__ = ["TubeEmbedding", "fixed_positions", "tube_centers", "tube_grid"]
