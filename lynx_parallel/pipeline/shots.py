"""ShotPipeline: what ranks and notebooks do alike with the loaded weights, from a picture and a prompt to frames.

The ranks of a gang use it with a parallelised transformer. Rank 0 makes the ``ShotInputs``. All ranks call ``denoise``
with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from lynx_parallel.inputs.base_configs import check_base
from lynx_parallel.inputs.embedding_file import read_embedding
from lynx_parallel.inputs.guidance import inside_window
from lynx_parallel.inputs.memory import CONDITIONING_ENTRIES
from lynx_parallel.inputs.pipeline import VaeDtype
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.inputs.weight_files import FaceFiles, WeightFiles
from lynx_parallel.model.adapters import Resampler
from lynx_parallel.model.checkpoints import load_experts, load_resampler, load_scheduler_config, load_vae
from lynx_parallel.model.experts import Experts
from lynx_parallel.model.precision import VAE_PRECISIONS, Fp32Precision, use_ieee
from lynx_parallel.model.transformer import LynxTransformer
from lynx_parallel.stages.conditioning import ConditioningCache, ShotInputs, make_phase
from lynx_parallel.stages.denoise import LocalGuidance, Phase, Step, denoise
from lynx_parallel.stages.latents import decode, to_frames
from lynx_parallel.stages.resume_state import ResumeState
from lynx_parallel.stages.schedulers import Scheduler, make_scheduler
from lynx_parallel.stages.shot_inputs import InputMaker
from lynx_parallel.subject.detection import FaceChoice
from lynx_parallel.subject.person import FaceModels, Person, identify_person
from lynx_parallel.subject.picture import as_picture, read_picture


class ShotPipeline:
    """The Lynx model, loaded once, and the stages of a shot.

    Conditioning that does not change between calls (a subject's reference features, a prompt's keys and values) is
    kept, see ``ConditioningCache``. A pipeline switches TF32 off in the whole process. torch's default for
    convolutions on CUDA is TF32. ``vae_dtype="tf32"`` uses it in the VAE.
    """

    def __init__(
        self,
        *,
        base: Path,
        experts: Experts,
        resampler: Resampler | None,
        vae: AutoencoderKLWan,
        scheduler_config: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        faces: FaceModels | None = None,
        vae_precision: Fp32Precision = "ieee",
    ):
        use_ieee()
        self.experts = experts
        self.vae = vae
        self.scheduler_config = scheduler_config
        self.dtype = dtype
        self.device = device
        self.faces = faces
        self.vae_precision = vae_precision
        self.guidance = LocalGuidance()
        self.conditioning = ConditioningCache(CONDITIONING_ENTRIES * len(experts.transformers))
        self.inputs = InputMaker(base, self.transformer.config, vae, resampler, dtype, device, vae_precision)

    @classmethod
    def from_files(
        cls,
        weights: WeightFiles,
        face: FaceFiles | None = None,
        *,
        dtype: torch.dtype,
        vae_dtype: VaeDtype = "float32",
        device: torch.device | str = "cpu",
        shard: Callable[[LynxTransformer], None] | None = None,
        keep_projections: bool = True,
        one_expert: bool = False,
    ) -> Self:
        """Loads the base and the adapters from local files.

        Args:
            dtype: of the transformer, resampler and text encoder.
            vae_dtype: precision of the VAE, as in a pipeline file.
            shard, keep_projections: as in ``load_transformer``.
            one_expert: of two transformers, the device holds only the one in use.

        Raises:
            CheckpointError: a file, key or shape does not fit.
        """
        check_base(weights.base)
        vae = VAE_PRECISIONS[vae_dtype]
        experts = load_experts(
            weights, dtype=dtype, device=device, shard=shard, keep_projections=keep_projections,
            one_at_a_time=one_expert,
        )  # fmt: skip
        resampler = weights.resampler
        return cls(
            base=weights.base,
            experts=experts,
            resampler=None if resampler is None else load_resampler(resampler, dtype=dtype, device=device),
            vae=load_vae(weights.base / "vae", dtype=vae.weights, device=device),
            scheduler_config=load_scheduler_config(weights.base / "scheduler"),
            dtype=dtype,
            device=torch.device(device),
            faces=None if face is None else FaceModels(face, device),
            vae_precision=vae.convolutions,
        )

    @property
    def transformer(self) -> LynxTransformer:
        """The transformer, or of two the expert of high noise."""
        return self.experts.transformers[0]

    def identify(
        self,
        sampling: Sampling,
        *,
        image: Any = None,
        landmarks: Any = None,
        embedding: Any = None,
        face: FaceChoice = "largest",
    ) -> Person:
        """Returns what the model needs of a person.

        Override it to use face models of your own, see ``LynxPipeline``.

        Args:
            sampling: settings of the shot; its ``reference_size`` matters.
            image, landmarks, embedding, face: as in ``LynxPipeline.__call__``.

        Raises:
            SubjectError: picture, landmarks or embedding cannot be used.
        """
        size = sampling.reference_size if self.experts.have_reference else None
        where, picture = "image", None
        if isinstance(image, str | Path):
            where = str(image)
            picture = read_picture(Path(image)) if size is not None or embedding is None else None
        elif image is not None:
            picture = as_picture(image, "image")
        return identify_person(
            picture,
            where=where,
            models=self.faces,
            landmarks=landmarks,
            embedding=read_embedding(embedding) if isinstance(embedding, str | Path) else embedding,
            choice=face,
            reference_size=size,
        )

    def prepare(
        self,
        prompt: str,
        sampling: Sampling,
        person: Person,
        reference_latents: torch.Tensor | None = None,
        start_image: np.ndarray | None = None,
    ) -> ShotInputs:
        """Returns everything that a shot starts from.

        Args:
            reference_latents: as from ``inputs.reference_latents``; encoded now if None.
            start_image: the first frame, as in ``InputMaker.make``.
        """
        if reference_latents is None and self.experts.have_reference:
            reference_latents = self.inputs.reference_latents(person.ref_crop, sampling)
        return self.inputs.make(prompt, sampling, person.embedding, reference_latents, start_image)

    def phase(self, inputs: ShotInputs, sampling: Sampling, *, inside: bool = True, expert: int = 0) -> Phase:
        """Returns the guidance inside or outside the identity window, see ``make_phase``.

        Args:
            expert: 1 for the expert of low noise, which has a ``guidance_scale`` of its own.
        """
        if expert and sampling.guidance_scale_2 is not None:
            sampling = sampling.model_copy(update={"guidance_scale": sampling.guidance_scale_2})
        transformer = self.experts.use(expert)
        return make_phase(transformer, inputs, sampling, self.guidance, self.conditioning, inside=inside)

    def make_scheduler(self, sampling: Sampling) -> Scheduler:
        """Returns the scheduler of these settings at its first step. Override it to use another one in all calls."""
        return make_scheduler(self.scheduler_config, sampling, self.device)

    def denoise(
        self,
        inputs: ShotInputs,
        sampling: Sampling,
        on_step: Callable[[Step], None] | None = None,
        start: ResumeState | None = None,
        until: int | None = None,
        scheduler: Scheduler | None = None,
    ) -> torch.Tensor:
        """Returns the final latents [1, 16, T, h, w], fp32, identical on every rank of a gang.

        Args:
            on_step: called after each step; ``Step.state()`` is what ``start`` takes.
            start: state from which to resume.
            until: number of steps after which to end, with the latents so far; None makes all.
            scheduler: at its first step; it is changed. None uses that of ``make_scheduler``.
        """
        if scheduler is None:
            scheduler = self.make_scheduler(sampling)
        steps, window = len(scheduler.timesteps), sampling.identity_window
        experts = self.experts.of_steps(scheduler.timesteps, sampling.boundary_ratio)
        phases: dict[tuple[int, bool], Phase] = {}

        def phase_of(step: int) -> Phase:
            key = experts[step], inside_window(step, steps, window)
            if key not in phases:
                phases.clear()  # frees the static keys and values of the expert before
                phases[key] = self.phase(inputs, sampling, expert=key[0], inside=key[1])
            return phases[key]

        return denoise(scheduler, inputs.noise, phase_of, on_step, self.guidance, start, until)

    def steps_before_switch(self, sampling: Sampling) -> int | None:
        """Returns how many steps the expert of high noise makes, or None if one transformer makes all steps."""
        experts = self.experts.of_steps(self.make_scheduler(sampling).timesteps, sampling.boundary_ratio)
        return experts.index(1) if len(set(experts)) > 1 else None

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Decodes final latents to uint8 frames [F, H, W, 3]."""
        return to_frames(decode(self.vae, latents, precision=self.vae_precision))
