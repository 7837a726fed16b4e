"""What each row of the denoiser's batch is: which image, which prompt, which branch of the guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from t2ictl.errors import UnsupportedPipeline

__all__ = ["BatchRow", "BatchLayout"]

Role = Literal["cond", "uncond"]


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """One row of the denoiser's batch.

    Args:
        image: index of the image this row belongs to.
        prompt: index of the prompt of that image.
        role: ``"cond"`` for the prompt's own row, ``"uncond"`` for the guidance's other one.
    """

    image: int
    prompt: int
    role: Role


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """All rows of the denoiser's batch, in order.

    Nobody halves a batch by assumption: roles are known from the arguments with which the
    pipeline encoded its prompt.

    Args:
        rows: one entry a row.

    Example:
        >>> batch = BatchLayout.from_counts(prompts=1, images_per_prompt=2, guided=True)
        >>> batch.indices("cond")
        (2, 3)
    """

    rows: tuple[BatchRow, ...]

    @classmethod
    def from_counts(cls, *, prompts: int, images_per_prompt: int, guided: bool) -> BatchLayout:
        """Lay out the rows as stock pipelines do: unconditional rows first, images of a prompt together.

        Args:
            prompts: number of prompts.
            images_per_prompt: number of images for each.
            guided: whether classifier-free guidance doubles the batch.

        Returns:
            The batch.

        Example:
            >>> [entry.prompt for entry in BatchLayout.from_counts(prompts=2, images_per_prompt=2, guided=False).rows]
            [0, 0, 1, 1]
        """
        roles: tuple[Role, ...] = ("uncond", "cond") if guided else ("cond",)
        images = prompts * images_per_prompt
        return cls(
            rows=tuple(
                BatchRow(image=image, prompt=image // images_per_prompt, role=role)
                for role in roles
                for image in range(images)
            )
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def images(self) -> int:
        """Number of images in the batch."""
        return len(self.indices("cond"))

    def indices(self, role: Role) -> tuple[int, ...]:
        """List the row numbers of one role.

        Args:
            role: ``"cond"`` or ``"uncond"``.

        Returns:
            Row numbers, ascending; empty if there is none.
        """
        return tuple(index for index, entry in enumerate(self.rows) if entry.role == role)

    def only(self, role: Role) -> BatchLayout:
        """Keep the rows of one role: the batch of a pass that computes no others.

        Args:
            role: ``"cond"`` or ``"uncond"``.

        Returns:
            The batch of that role.
        """
        return BatchLayout(rows=tuple(entry for entry in self.rows if entry.role == role))

    def check_rows(self, rows: int) -> None:
        """Compare with the batch that really arrives at the denoiser.

        Args:
            rows: number of rows of the denoiser's sample.

        Raises:
            UnsupportedPipeline: if the pipeline lays out its batch in another way.
        """
        if rows != len(self):
            raise UnsupportedPipeline(
                f"The denoiser got {rows} rows where {len(self)} were expected "
                f"({self.images} images, roles {sorted({entry.role for entry in self.rows})}).",
                "Pipelines that add rows of their own (perturbed-attention guidance, image-edit guidance) "
                "are not supported; call the plain pipeline of the family.",
            )
