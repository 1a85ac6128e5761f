"""Cropped Positional Embedding (RO-ViT, arXiv 2305.07011): training images see random crops of an enlarged position table."""

import torch
from torch import nn


def random_position_crops(table: torch.Tensor, grid_size: int, enlarged: int, batch_size: int) -> torch.Tensor:
    """One random crop of the enlarged patch positions per image (Cropped Positional Embedding; RO-ViT section 3.2).

    The table is enlarged bilinearly; of it a box with 10 to 100 % of the area and an aspect ratio from 1/2 to 2 is resampled
    to the grid of the image.

    Args:
        table (`torch.Tensor` of shape `(grid_size ** 2, hidden_size)`): Learned positions, row by row.
        grid_size (`int`): Height and width of their grid, in patches.
        enlarged (`int`): Height and width of the enlarged grid, in patches.
        batch_size (`int`): Number of images.

    Returns:
        `torch.Tensor` of shape `(batch_size, grid_size ** 2, hidden_size)`.
    """
    area = torch.empty(batch_size, device=table.device).uniform_(0.1, 1.0)
    log_ratio = torch.empty(batch_size, device=table.device).uniform_(-0.5, 0.5)
    ratio = 4.0**log_ratio  # width over height
    # Shares of the table's side
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left = torch.rand_like(width) * (1 - width)
    top = torch.rand_like(height) * (1 - height)
    return crop_positions(table, grid_size, enlarged, torch.stack([left, top, width, height], dim=-1))


def crop_positions(table: torch.Tensor, grid_size: int, enlarged: int, boxes: torch.Tensor) -> torch.Tensor:
    """Resample boxes of the enlarged patch positions to the grid of an image; the whole box gives back a smooth table.

    Args:
        table, grid_size, enlarged: As in [`random_position_crops`].
        boxes (`torch.Tensor` of shape `(batch_size, 4)`): Left, top, width and height as shares of the table's side.

    Returns:
        `torch.Tensor` of shape `(batch_size, grid_size ** 2, hidden_size)`.
    """
    grid = table.reshape(grid_size, grid_size, -1).float()
    # Bilinear in both steps, so rows and columns part: the enlarged table never exists.
    enlarge = nn.functional.interpolate(torch.eye(grid_size, device=table.device)[None], enlarged, mode="linear")[0].T
    pixels = (torch.arange(grid_size, device=table.device) + 0.5) / grid_size

    def resample(start: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        where = (start[:, None] + length[:, None] * pixels) * enlarged - 0.5  # (batch, grid_size)
        where = where.clamp(0, enlarged - 1)[..., None]
        weights = (1 - (where - torch.arange(enlarged, device=table.device)).abs()).clamp(min=0)
        return weights @ enlarge  # (batch, grid_size, grid_size): from the table's rows or columns to the crop's

    left, top, width, height = boxes.float().unbind(-1)
    columns = torch.einsum("bxw,hwc->bhxc", resample(left, width), grid)
    crops = torch.einsum("byh,bhxc->byxc", resample(top, height), columns)
    return crops.flatten(1, 2).to(table.dtype)


__all__ = ["crop_positions", "random_position_crops"]
