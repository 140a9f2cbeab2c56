"""LynxPipeline: videos of one subject in memory, for notebooks and scripts. Ranks use it as a ``ShotPipeline``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import torch

from lynx_parallel.inputs.call import is_list, read_call, read_spec
from lynx_parallel.inputs.cluster import ATTENTION, Attention
from lynx_parallel.inputs.embedding_file import as_embedding
from lynx_parallel.inputs.pipeline import FaceSpec, ModelSpec, VaeDtype, Video
from lynx_parallel.inputs.pipeline_files import load_pipeline
from lynx_parallel.inputs.problems import Problems, one_of, shown_value
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.inputs.site import refuse_calls
from lynx_parallel.inputs.weight_files import Expert
from lynx_parallel.model.attention import LocalTokens, choose_kernel
from lynx_parallel.pipeline.shots import ShotPipeline
from lynx_parallel.plan.weights import find_face_models, find_weights
from lynx_parallel.stages.denoise import Step
from lynx_parallel.stages.kept_encoder import video_bytes
from lynx_parallel.stages.rendered import LynxOutput
from lynx_parallel.stages.schedulers import Scheduler, own_scheduler
from lynx_parallel.subject.detection import FaceChoice
from lynx_parallel.subject.person import Person
from lynx_parallel.subject.picture import as_picture, check_inside, check_landmarks

if TYPE_CHECKING:
    from PIL.Image import Image
    from tqdm import tqdm

    from lynx_parallel.subject.picture import Picture as Array

    Picture = str | Path | Image | Array

_ARGUMENTS = ("prompt", "image", "landmarks", "embedding", "face", "start_image", "seed", "scheduler", "on_step")


class LynxPipeline(ShotPipeline):
    """The Lynx model, loaded once and called many times. Build it with ``from_pipeline`` or ``from_pretrained``.

    ::

        pipe = LynxPipeline.from_pipeline("lynx-full", device="cuda")
        video = pipe("A woman carves a pumpkin", image="ada.jpg", seed=7)
        video.save("pumpkin.mp4")

    A scheduler of your own, for one call::

        pipe("A woman carves a pumpkin", image="ada.jpg", scheduler=my_scheduler)

    For all calls, override ``make_scheduler``. For face models of your own, give ``landmarks`` and ``embedding`` to a
    call, or override ``identify``, which gets the picture as a uint8 RGB array::

        class MyPipeline(LynxPipeline):
            def make_scheduler(self, sampling):
                return my_scheduler(sampling)  # at its first step

            def identify(self, sampling, *, image=None, **given):
                landmarks, embedding = my_face_models(image)
                return super().identify(sampling, image=image, landmarks=landmarks, embedding=embedding)

    Attributes:
        sampling: settings from which calls start: those of the pipeline file, or the defaults of ``Sampling``.
        video: encoding of the files that ``LynxOutput.save`` writes.
        faces: the face models. Any object with a ``detector`` (see ``subject.detection.Detector``) and a
            ``recognizer`` (whose ``embed`` takes a crop [112, 112, 3] and returns a vector [512]) may replace them.
    """

    sampling = Sampling()
    video = Video()
    _progress_bar_config: Mapping[str, Any] = {}

    @classmethod
    def from_pipeline(
        cls,
        pipeline: str | Path,
        *,
        device: torch.device | str = "cpu",
        attention: Attention = "auto",
        face_models: bool = True,
        keep_projections: bool = True,
        one_expert: bool = False,
        keep_text_encoder: bool | None = None,
    ) -> Self:
        """Loads all that a pipeline file names: weights, LoRAs, face models, precision, sampling and encoding.

        A call then gives the latents that ``lynx-render`` gives on one rank, for the same picture, prompt and settings:
        bit for bit, on the CPU with the same number of threads (``torch.set_num_threads``).

        Args:
            pipeline: name of a shipped pipeline, such as ``lynx-full``, or a pipeline file.
            attention: kernel, as ``lynx-render --attention``.
            face_models: False loads none. Calls must give the embedding and the landmarks then.
            keep_projections: as in ``load_transformer``.
            one_expert: of two transformers, the device holds only the one in use.
            keep_text_encoder: whether the text encoder stays loaded between calls: True on the device, False not at
                all, None where memory allows, in the machine's memory if the device is too small.

        Raises:
            InputErrors: the file is missing or wrong, all mistakes at once; or there is no such device.
            CheckpointError: a weights file is missing, or a file, key or shape does not fit.
        """
        spec = load_pipeline(pipeline)
        dtype = getattr(torch, spec.model.dtype)
        _check(device, attention)
        kernel = choose_kernel(attention, torch.device(device), dtype)
        face = find_face_models(spec.face) if face_models else None
        pipe = cls.from_files(
            find_weights(spec.model), face, dtype=dtype, vae_dtype=spec.model.vae_dtype, device=device,
            keep_projections=keep_projections, one_expert=one_expert,
        )  # fmt: skip
        for transformer in pipe.experts:
            transformer.tokens = LocalTokens(kernel.attention)
        pipe.sampling, pipe.video = spec.sampling, spec.video
        pipe.keep_text_encoder(keep_text_encoder)
        return pipe

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        adapters: Mapping[str, str | Path],
        *,
        adapters_expert: Expert | None = None,
        loras: Sequence[str | Path | Mapping[str, Any]] = (),
        face: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        vae_dtype: VaeDtype = "float32",
        device: torch.device | str = "cpu",
        keep_projections: bool = True,
        keep_text_encoder: bool | None = None,
    ) -> Self:
        """Loads the base and the adapters. Calls start from the defaults of ``Sampling``, without a negative prompt.

        Args:
            base: folder of a Wan model in diffusers layout, or a hub id ``org/name[@revision]``.
            adapters: ``resampler``, ``id`` and (not for lite) ``ref``: safetensors files, or ``hub:org/repo/path``.
            adapters_expert: the only expert with adapters, for a base with two; None for both.
            loras: files, or mappings with ``file``, ``weight`` and ``expert``, as in a pipeline file.
            face: as in a pipeline file. Without it, calls must give the embedding and the landmarks.
            dtype: of the transformer, resampler and text encoder.
            vae_dtype: precision of the VAE, ``float32``, ``tf32`` or ``bfloat16``, as in a pipeline file.
            keep_projections, keep_text_encoder: as in ``from_pipeline``.

        Raises:
            InputErrors: an argument is wrong, or there is no such device.
            CheckpointError: a file, key or shape does not fit.
        """
        given = {
            "base": str(base),
            "adapters": {name: str(path) for name, path in adapters.items()},
            "adapters_expert": adapters_expert,
            "loras": [str(lora) if isinstance(lora, Path) else lora for lora in loras],
            "vae_dtype": vae_dtype,
        }
        spec = read_spec(ModelSpec, given)
        files = None if face is None else find_face_models(read_spec(FaceSpec, face, "face"))
        _check(device)
        pipe = cls.from_files(
            find_weights(spec), files, dtype=dtype, vae_dtype=vae_dtype, device=device,
            keep_projections=keep_projections,
        )  # fmt: skip
        pipe.keep_text_encoder(keep_text_encoder)
        return pipe

    def keep_text_encoder(self, keep: bool | None) -> None:
        """Decides whether the text encoder stays loaded between calls, as in ``from_pipeline``. False frees it now."""
        kept = self.inputs.text_encoder
        kept.keep = keep
        # A method of this pipeline would tie it into a cycle, and a dropped pipeline would not free its memory at once.
        kept.needed = partial(video_bytes, self.experts, tf32_decode=self.vae_precision == "tf32")
        if keep is False:
            kept.free()

    def set_progress_bar_config(self, **config: Any) -> None:
        """Sets arguments of the progress bar (``tqdm.auto.tqdm``), such as ``disable=True``, for all later calls."""
        self._progress_bar_config = config

    @overload
    def __call__(
        self,
        prompt: str,
        *,
        image: Picture | None = None,
        landmarks: Any = None,
        embedding: Any = None,
        face: FaceChoice = "largest",
        start_image: Picture | None = None,
        seed: int | None = None,
        scheduler: str | Scheduler | Callable[[Sampling], Scheduler] | None = None,
        on_step: Callable[[Step], None] | None = None,
        **sampling: Any,
    ) -> LynxOutput: ...

    @overload
    def __call__(
        self, prompt: list[str], *, seed: int | Sequence[int] | None = None, **arguments: Any
    ) -> list[LynxOutput]: ...

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Picture | None = None,
        landmarks: Any = None,
        embedding: Any = None,
        face: FaceChoice = "largest",
        start_image: Picture | None = None,
        seed: int | Sequence[int] | None = None,
        scheduler: str | Scheduler | Callable[[Sampling], Scheduler] | None = None,
        on_step: Callable[[Step], None] | None = None,
        **sampling: Any,
    ) -> LynxOutput | list[LynxOutput]:
        """Renders one video for each prompt. The subject's conditioning is made once for all of them.

        Args:
            prompt: a text, or a list of texts, which returns a list of videos.
            image: the subject: a picture file, a PIL picture or a uint8 RGB array [H, W, 3]. Not needed for lite with
                an embedding.
            landmarks: five (x, y) pixels: eyes, nose tip, mouth corners; the viewer's left first. By default found.
            embedding: ArcFace vector [512] of the face, or its file. By default it is made from the picture.
            face: which of several faces: ``largest``, ``only`` or the n-th from the left.
            start_image: the first frame, given as ``image`` is, for a base that begins with one (I2V).
            seed: of the initial noise: one for all prompts, or a list of one for each. By default that of ``sampling``.
            scheduler: a name of ``Sampling.scheduler``, a scheduler of diffusers (it is copied), or a function that
                returns a new ``Scheduler`` for the settings.
            on_step: called after each denoising step.
            sampling: any other field of ``Sampling`` (width, height, num_frames, …), which wins over ``self.sampling``.

        Raises:
            InputErrors: an argument is unknown or wrong, all mistakes at once.
            SubjectError: image, landmarks or embedding cannot be used.
            ValueError: ``start_image`` is missing, or the base takes none.
        """
        given = {**sampling, "scheduler": scheduler} if isinstance(scheduler, str) else sampling
        calls = read_call(self.sampling, prompt, seed, given, face=face, arguments=_ARGUMENTS)
        schedulers = [
            self.make_scheduler(settings)
            if scheduler is None or isinstance(scheduler, str)
            else own_scheduler(scheduler, settings, self.device)
            for _, settings in calls
        ]
        first = None if start_image is None else as_picture(start_image, "start_image")
        person = self._person(calls[0][1], image, landmarks, embedding, face)
        has_reference = self.experts.have_reference
        texts = (self.inputs.texts(text, settings, reference=has_reference) for text, settings in calls)
        self.inputs.encode_prompts(text for shot in texts for text in shot)
        outputs: list[LynxOutput] = []
        reference: dict[int, torch.Tensor] = {}
        for (text, settings), its_scheduler in zip(calls, schedulers, strict=True):
            drawn = settings.seed if settings.reference_latent == "sample" else 0
            if has_reference and drawn not in reference:
                reference[drawn] = self.inputs.reference_latents(person.ref_crop, settings)
            inputs = self.prepare(text, settings, person, reference.get(drawn), first)
            title = f"video {len(outputs) + 1}/{len(calls)}" if len(calls) > 1 else None
            with self._progress_bar(len(its_scheduler.timesteps), title) as bar:

                def step_done(step: Step, bar: tqdm = bar) -> None:
                    bar.update()
                    if on_step is not None:
                        on_step(step)

                latents = self.denoise(inputs, settings, step_done, scheduler=its_scheduler)
            outputs.append(LynxOutput(self.decode(latents), latents, text, settings, self.video))
        return outputs if is_list(prompt) else outputs[0]

    def _person(self, settings: Sampling, image: Any, landmarks: Any, embedding: Any, face: FaceChoice) -> Person:
        """Returns the person of a call, after a check of the arguments, which messages name."""
        picture = None if image is None else as_picture(image, "image")
        if embedding is not None:
            embedding = as_embedding(embedding, "embedding")
        if landmarks is not None:
            points = check_landmarks(landmarks)
            landmarks = points if picture is None else check_inside(points, picture.shape[1], picture.shape[0])
        person = self.identify(settings, image=picture, landmarks=landmarks, embedding=embedding, face=face)
        if person.warning:
            warnings.warn(person.warning, stacklevel=3)
        return person

    def _progress_bar(self, steps: int, title: str | None) -> tqdm:
        from tqdm.auto import tqdm

        return tqdm(**{"total": steps, "desc": title, **self._progress_bar_config})


def _check(device: torch.device | str, attention: str = "auto") -> None:
    """Raises InputErrors for a device or a kernel that does not exist, and where the site has rules."""
    refuse_calls()
    problems = Problems()
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        problems.option(f"device={str(device)!r}: torch {torch.__version__} sees no CUDA device here: use 'cpu'")
    if attention not in ATTENTION:
        problems.option(f"attention={shown_value(attention)}: must be {one_of(ATTENTION)}")
    problems.raise_if_any()
