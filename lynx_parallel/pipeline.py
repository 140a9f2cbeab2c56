"""LynxPipeline: one subject, one prompt, one video, in this process. For notebooks and for ranks.

The ranks of a gang use the same class with a parallelised transformer. Rank 0 makes the ``ShotInputs``. All ranks call
``denoise`` with them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from lynx_parallel.inputs.base_configs import check_base
from lynx_parallel.inputs.embedding_file import read_embedding
from lynx_parallel.inputs.guidance import inside_window
from lynx_parallel.inputs.pipeline import FaceSpec, ModelSpec, VaeDtype
from lynx_parallel.inputs.sampling import REFERENCE_PROMPT, Sampling
from lynx_parallel.inputs.weight_files import FaceFiles, WeightFiles
from lynx_parallel.model.adapters import Resampler
from lynx_parallel.model.checkpoints import load_resampler, load_scheduler_config, load_transformer, load_vae
from lynx_parallel.model.precision import VAE_PRECISIONS, Fp32Precision, use_ieee
from lynx_parallel.model.transformer import LynxTransformer
from lynx_parallel.plan.weights import find_face_models, find_weights
from lynx_parallel.stages.conditioning import ConditioningCache, ShotInputs, make_phase
from lynx_parallel.stages.denoise import LocalGuidance, Phase, Step, denoise
from lynx_parallel.stages.latents import decode, encode_reference, initial_noise, to_frames
from lynx_parallel.stages.prompt import encode_prompts, pad
from lynx_parallel.stages.resume_state import ResumeState
from lynx_parallel.stages.schedulers import Scheduler, make_scheduler
from lynx_parallel.subject.detection import FaceChoice
from lynx_parallel.subject.person import FaceModels, Person, identify_person
from lynx_parallel.subject.picture import read_picture


@dataclass(frozen=True)
class LynxOutput:
    """A rendered video.

    Attributes:
        frames: uint8 [F, H, W, 3].
        latents: final latents [1, 16, T, h, w], fp32, normalised.
    """

    frames: np.ndarray
    latents: torch.Tensor


class LynxPipeline:
    """The Lynx model, loaded once and called many times. Build it with ``from_pretrained``.

    Conditioning that does not change between calls (a subject's reference features, a prompt's keys and values) is
    kept, see ``ConditioningCache``. A pipeline switches TF32 off in the whole process. torch's default for
    convolutions on CUDA is TF32. ``vae_dtype="tf32"`` uses it in the VAE.
    """

    def __init__(
        self,
        *,
        base: Path,
        transformer: LynxTransformer,
        resampler: Resampler,
        vae: AutoencoderKLWan,
        scheduler_config: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        faces: FaceModels | None = None,
        vae_precision: Fp32Precision = "ieee",
    ):
        use_ieee()
        self.base = base
        self.transformer = transformer
        self.resampler = resampler
        self.vae = vae
        self.scheduler_config = scheduler_config
        self.dtype = dtype
        self.device = device
        self.faces = faces
        self.vae_precision = vae_precision
        self.guidance = LocalGuidance()
        self.encoded_prompts: MutableMapping[str, torch.Tensor] = {}
        self.conditioning = ConditioningCache()
        self._unconditional: dict[Hashable, torch.Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        adapters: Mapping[str, str | Path],
        *,
        loras: Sequence[str | Path | Mapping[str, Any]] = (),
        face: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        vae_dtype: VaeDtype = "float32",
        device: torch.device | str = "cpu",
        keep_projections: bool = True,
    ) -> Self:
        """Loads the base and the adapters.

        Args:
            base: folder of Wan2.1-T2V in diffusers layout, or a hub id ``org/name[@revision]``.
            adapters: ``resampler``, ``id`` and (not for lite) ``ref``: safetensors files in the
                reference layout or the single-file one, or ``hub:org/repo/path``.
            loras: files, or mappings with ``file`` and ``weight``, as in a pipeline file.
            face: ``detector`` and ``recognizer``, as in a pipeline file. Without them, calls must give the
                embedding and the landmarks.
            dtype: of the transformer, resampler and text encoder.
            vae_dtype: precision of the VAE, ``float32``, ``tf32`` or ``bfloat16``, as in a pipeline file.
            keep_projections: as in ``load_transformer``.

        Raises:
            CheckpointError: a file, key or shape does not fit.
        """
        spec = ModelSpec(
            base=str(base),
            adapters={name: str(path) for name, path in adapters.items()},  # type: ignore[arg-type]
            loras=[str(lora) if isinstance(lora, Path) else lora for lora in loras],  # type: ignore[arg-type]
        )
        files = None if face is None else find_face_models(FaceSpec(**face))
        return cls.from_files(
            find_weights(spec), files, dtype=dtype, vae_dtype=vae_dtype, device=device,
            keep_projections=keep_projections,
        )  # fmt: skip

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
    ) -> Self:
        """Loads as ``from_pretrained`` does, from local files. ``shard`` is that of ``load_transformer``."""
        check_base(weights.base)
        vae = VAE_PRECISIONS[vae_dtype]
        return cls(
            base=weights.base,
            transformer=load_transformer(
                weights, dtype=dtype, device=device, shard=shard, keep_projections=keep_projections
            ),
            resampler=load_resampler(weights.resampler, dtype=dtype, device=device),
            vae=load_vae(weights.base / "vae", dtype=vae.weights, device=device),
            scheduler_config=load_scheduler_config(weights.base / "scheduler"),
            dtype=dtype,
            device=torch.device(device),
            faces=None if face is None else FaceModels(face, device),
            vae_precision=vae.convolutions,
        )

    def __call__(
        self,
        prompt: str,
        *,
        image: np.ndarray | str | Path | None = None,
        landmarks: Any = None,
        embedding: np.ndarray | str | Path | None = None,
        face: FaceChoice = "largest",
        on_step: Callable[[Step], None] | None = None,
        **sampling: Any,
    ) -> LynxOutput:
        """Renders one video.

        Args:
            image: uint8 RGB [H, W, 3] or a picture file; not needed for lite with an embedding.
            landmarks: five (x, y) pixels: eyes, nose tip, mouth corners; the viewer's left first. By default they are
                found in the picture.
            embedding: ArcFace vector [512] of the face, or a file of it. By default it is made from the picture.
            face: which of several faces: ``largest``, ``only`` or the n-th from the left.
            on_step: called after each denoising step.
            sampling: any field of ``spec.pipeline.Sampling`` (width, height, num_frames, seed, …).

        Raises:
            SubjectError: picture, landmarks or embedding cannot be used.
        """
        settings = Sampling(**sampling)
        person = self.identify(settings, image=image, landmarks=landmarks, embedding=embedding, face=face)
        inputs = self.prepare(prompt, settings, person)
        latents = self.denoise(inputs, settings, on_step)
        return LynxOutput(frames=self.decode(latents), latents=latents)

    def identify(
        self,
        sampling: Sampling,
        *,
        image: np.ndarray | str | Path | None = None,
        landmarks: Any = None,
        embedding: np.ndarray | str | Path | None = None,
        face: FaceChoice = "largest",
    ) -> Person:
        """Returns what the model needs of a person. Arguments and errors are those of ``__call__``."""
        size = sampling.reference_size if self.transformer.has_reference else None
        needs_picture = size is not None or embedding is None
        is_file = isinstance(image, str | Path)
        return identify_person(
            read_picture(Path(image)) if is_file and needs_picture else image,  # type: ignore[arg-type]
            where=str(image) if is_file else "the picture",
            models=self.faces,
            landmarks=landmarks,
            embedding=read_embedding(Path(embedding)) if isinstance(embedding, str | Path) else embedding,
            choice=face,
            reference_size=size,
        )

    def encode_prompts(self, prompts: list[str]) -> None:
        """Makes the embeddings of these prompts. Loads the text encoder for it, and frees it afterwards."""
        encode_prompts(self.base, prompts, self.encoded_prompts, dtype=self.dtype, device=self.device)

    def prompt_embeds(self, prompt: str) -> torch.Tensor:
        """Returns a prompt's embedding, [1, 512, text_dim]. Encodes it if that was not done before."""
        self.encode_prompts([prompt])
        return pad(self.encoded_prompts[prompt]).to(self.device)

    @torch.no_grad()
    def prepare(
        self, prompt: str, sampling: Sampling, person: Person, reference_latents: torch.Tensor | None = None
    ) -> ShotInputs:
        """Returns everything that a shot starts from.

        Args:
            reference_latents: as from ``reference_latents``; encoded now if None.
        """
        vector = torch.from_numpy(person.embedding).to(self.device, self.dtype).view(1, 1, -1)
        self.encode_prompts([prompt, sampling.negative_prompt])
        inputs = ShotInputs(
            noise=initial_noise(sampling.width, sampling.height, sampling.num_frames, sampling.seed).to(self.device),
            prompt_embeds=self.prompt_embeds(prompt),
            negative_prompt_embeds=self.prompt_embeds(sampling.negative_prompt),
            id_tokens=self.resampler(vector),
            # Upstream's unconditional identity is the resampler's output for zeros, not zeros.
            id_tokens_uncond=self.resampler(torch.zeros_like(vector)),
        )
        if not self.transformer.has_reference:
            return inputs
        latents = self.reference_latents(sampling, person) if reference_latents is None else reference_latents
        return replace(
            inputs,
            reference_prompt_embeds=self.prompt_embeds(REFERENCE_PROMPT),
            reference_latents=latents.to(self.device),
            reference_latents_uncond=self._reference_latents_uncond(sampling),
        )

    def reference_latents(self, sampling: Sampling, person: Person) -> torch.Tensor:
        """Returns the person's reference crop as latents [1, 16, 1, size/8, size/8], fp32."""
        assert person.ref_crop is not None
        return self._encode_reference(person.ref_crop, sampling)

    def _reference_latents_uncond(self, sampling: Sampling) -> torch.Tensor:
        """Returns the latents of the grey picture, which all subjects share. A drawn posterior depends on the seed."""
        key = sampling.reference_size, sampling.seed if sampling.reference_latent == "sample" else None
        if key not in self._unconditional:
            self._unconditional = {key: self._encode_reference(None, sampling)}
        return self._unconditional[key]

    def _encode_reference(self, crop: np.ndarray | None, sampling: Sampling) -> torch.Tensor:
        return encode_reference(
            self.vae, crop, size=sampling.reference_size, mode=sampling.reference_latent, seed=sampling.seed,
            precision=self.vae_precision,
        )  # fmt: skip

    def phase(self, inputs: ShotInputs, sampling: Sampling, *, inside: bool = True) -> Phase:
        """Returns the guidance inside or outside the identity window, see ``make_phase``."""
        return make_phase(self.transformer, inputs, sampling, self.guidance, self.conditioning, inside=inside)

    def make_scheduler(self, sampling: Sampling) -> Scheduler:
        """Returns the scheduler of these settings at its first step."""
        return make_scheduler(self.scheduler_config, sampling, self.device)

    def denoise(
        self,
        inputs: ShotInputs,
        sampling: Sampling,
        on_step: Callable[[Step], None] | None = None,
        start: ResumeState | None = None,
    ) -> torch.Tensor:
        """Returns the final latents [1, 16, T, h, w], fp32, identical on every rank of a gang.

        Args:
            on_step: called after each step; ``Step.state()`` is what ``start`` takes.
            start: state from which to resume.
        """
        steps, window = sampling.num_inference_steps, sampling.identity_window
        inside = [inside_window(step, steps, window) for step in range(steps)]
        phases = {now: self.phase(inputs, sampling, inside=now) for now in sorted(set(inside), reverse=True)}
        return denoise(
            self.transformer, self.make_scheduler(sampling), inputs.noise, lambda step: phases[inside[step]], on_step,
            self.guidance, start,
        )  # fmt: skip

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Decodes final latents to uint8 frames [F, H, W, 3]."""
        return to_frames(decode(self.vae, latents, precision=self.vae_precision))
