"""What each row of the denoiser's batch is: which image, which prompt, which branch of the guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from t2ictl.errors import UnsupportedPipeline

__all__ = ["Lane", "Lanes"]

Role = Literal["cond", "uncond"]


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One row of the denoiser's batch.

    Args:
        image: index of the picture this row belongs to.
        prompt: index of the prompt of that picture.
        role: ``"cond"`` for the prompt's own row, ``"uncond"`` for the guidance's other one.
    """

    image: int
    prompt: int
    role: Role


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """All rows of the denoiser's batch, in order.

    Nobody halves a batch by assumption: roles are known from the arguments with which the
    pipeline encoded its prompt.

    Args:
        lanes: one entry a row.

    Example:
        >>> lanes = Lanes.of_batch(prompts=1, images_per_prompt=2, guided=True)
        >>> lanes.rows("cond")
        (2, 3)
    """

    lanes: tuple[Lane, ...]

    @classmethod
    def of_batch(cls, *, prompts: int, images_per_prompt: int, guided: bool) -> Lanes:
        """Lay out the rows as stock pipelines do: unconditional rows first, images of a prompt together.

        Args:
            prompts: number of prompts.
            images_per_prompt: number of pictures for each.
            guided: whether classifier-free guidance doubles the batch.

        Returns:
            The lanes.

        Example:
            >>> [lane.prompt for lane in Lanes.of_batch(prompts=2, images_per_prompt=2, guided=False).lanes]
            [0, 0, 1, 1]
        """
        roles: tuple[Role, ...] = ("uncond", "cond") if guided else ("cond",)
        images = prompts * images_per_prompt
        return cls(
            lanes=tuple(
                Lane(image=image, prompt=image // images_per_prompt, role=role)
                for role in roles
                for image in range(images)
            )
        )

    def __len__(self) -> int:
        return len(self.lanes)

    @property
    def images(self) -> int:
        """Number of pictures in the batch."""
        return len(self.rows("cond"))

    def rows(self, role: Role) -> tuple[int, ...]:
        """List the row numbers of one role.

        Args:
            role: ``"cond"`` or ``"uncond"``.

        Returns:
            Row numbers, ascending; empty if there is none.
        """
        return tuple(row for row, lane in enumerate(self.lanes) if lane.role == role)

    def only(self, role: Role) -> Lanes:
        """Keep the rows of one role: the lanes of a pass that computes no others.

        Args:
            role: ``"cond"`` or ``"uncond"``.

        Returns:
            The lanes of that role.
        """
        return Lanes(lanes=tuple(lane for lane in self.lanes if lane.role == role))

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
                f"({self.images} pictures, roles {sorted({lane.role for lane in self.lanes})}).",
                "Pipelines that add rows of their own (perturbed-attention guidance, image-edit guidance) "
                "are not supported; call the plain pipeline of the family.",
            )
