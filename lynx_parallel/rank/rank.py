"""A rank: one process that holds the weights, stays alive, and is part of at most one gang."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray
import torch
import torch.distributed as dist

from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.inputs.model_config import transformer_config
from lynx_parallel.model.attention import Kernel, choose_kernel
from lynx_parallel.model.precision import use_ieee
from lynx_parallel.output.finished_latents import latents_metadata
from lynx_parallel.parallel import xdit
from lynx_parallel.parallel.apply import localize, parallelize
from lynx_parallel.parallel.broadcast import broadcast
from lynx_parallel.parallel.room import Room
from lynx_parallel.parallel.shard import release, shard
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.rank.converted import checked
from lynx_parallel.rank.environment import bind_network, threads_here
from lynx_parallel.rank.hello import describe_rank
from lynx_parallel.rank.logs import logged_to, write_log
from lynx_parallel.rank.memory import room_on
from lynx_parallel.rank.messages import Check, EncodeOrder, Hello, Progress, RankConfig, Rendered, RenderOrder
from lynx_parallel.rank.output_writer import Decoded, OutputWriter
from lynx_parallel.rank.preparation import Preparation
from lynx_parallel.rank.pulse import Pulse
from lynx_parallel.rank.resume_states import STATE_DAMAGED, StateSaver, move_damaged
from lynx_parallel.rank.selfcheck import check_all, check_group
from lynx_parallel.rank.steps import Steps
from lynx_parallel.rank.store import COLLECTIVE_TIMEOUT, join_store, open_store
from lynx_parallel.rank.visibility import missing_files
from lynx_parallel.stages.conditioning import ShotInputs
from lynx_parallel.stages.prompt import PromptFolder, encode_prompts
from lynx_parallel.stages.resume_state import ResumeState, load_resume_state


class Rank:
    """The work of a rank's process. ``rank.actor`` makes it a Ray actor.

    Args:
        device: ``cuda`` or ``cpu``.
        sharing: number of ranks that share this machine's cores.
    """

    def __init__(self, device: str, sharing: int, config: RankConfig):
        torch.set_num_threads(threads_here(sharing))
        use_ieee()
        bind_network(ray.util.get_node_ip_address())
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.config = config
        self.rank = 0
        self.layout = Layout()
        self.pipeline: LynxPipeline | None = None
        self._pulse = Pulse(config.hung_after, self.device)
        self.writer = OutputWriter(config, self.device, self._pulse.wait_for)
        self._kernels: dict[bool, Kernel] = {}
        self._warnings: tuple[str, ...] = ()  # for the next sidecar
        damaged_text = partial(self._set_damaged_aside, "the prompt's embedding is damaged and is made again")
        self._prompts = {} if config.prompts is None else PromptFolder(config.prompts.path, damaged_text)
        self._preparation = Preparation()
        self._inputs: ShotInputs | None = None
        self._earlier: dict[str, tuple[Counter[str], float]] = {}  # of shots that have been through one expert
        self._stop = False

    def hello(self) -> Hello:
        """Describes this rank. The driver calls it first: Ray gives no reason if a constructor fails."""
        return describe_rank(self.device, self._kernel)

    def _kernel(self, *, need_lse: bool = False) -> Kernel:
        """Returns the attention kernel. A ring needs one that returns the log-sum-exp."""
        if need_lse not in self._kernels:
            kernel = choose_kernel(self.config.attention, self.device, self.dtype, need_lse=need_lse)
            self._kernels[need_lse] = kernel
            if need_lse:  # chosen after ``hello``
                self._warnings = tuple(line for line in kernel.warnings if line not in self._kernel().warnings)
        return self._kernels[need_lse]

    def progress(self) -> Progress:
        """Returns the progress of the current shot, also while ``render`` runs in another thread."""
        return self._pulse.progress()

    def stop(self) -> None:
        """Rank 0: saves the resume state after the current step, and ends the shot with ``Stopped``."""
        self._stop = True

    def misses(self, probe: Path, needed: Sequence[Path]) -> list[str]:
        """Returns what this machine does not see, as ``missing_files``."""
        return missing_files(probe, needed)

    def check(self, output: Path) -> list[Check]:
        """Checks what this rank needs by itself, in seconds. Called before the weights are loaded."""
        return check_all(self.config, self.device, self._kernel, output)

    def encode_prompts(self, prompts: list[str]) -> None:
        """Rank 0: makes prompt embeddings for all gangs. Frees the text encoder before other weights are loaded."""
        encode_prompts(self.config.weights.base, prompts, self._prompts, dtype=self.dtype, device=self.device)

    def load(self) -> None:
        """Loads the weights. A sharded transformer is loaded by ``join``, which knows this rank's share."""
        if not self.config.denoise:
            self.writer.load()
            return
        weights, warning = checked(self.config.weights)
        if warning:
            self.config, self._warnings = replace(self.config, weights=weights), (*self._warnings, warning)
            write_log(warning)
        if not self.config.shard:
            self._build(None)

    def open_store(self) -> tuple[str, int]:
        """Rank 0: opens the gang's store. Returns its host and port."""
        self._store = open_store()
        return self._store.host, self._store.port

    def join(self, layout: Layout, rank: int, store: tuple[str, int]) -> list[Check]:
        """Becomes rank ``rank`` of a gang of this layout. Blocks until its peers have joined.

        Weights stay loaded. If they are sharded, each rank reads its share of the new group.

        Returns:
            The checks of the gang's collectives, one per axis.

        Raises:
            ClusterError: the attention kernel that was asked for does not return the log-sum-exp that a ring needs.
        """
        self.layout, self.rank = layout, rank
        checks: list[Check] = []
        if not self.config.denoise:
            return checks
        attention = self._kernel(need_lse=layout.ring > 1).attention
        if layout.size > 1:
            membership = xdit.join(
                layout, rank=rank, store=self._store if rank == 0 else join_store(store), device=self.device,
                kernel=attention, transformer_config=transformer_config(self.config.weights),
                timeout=COLLECTIVE_TIMEOUT,
            )  # fmt: skip
            checks = check_group(self.device, membership.groups)
            if not all(check.ok for check in checks):
                return checks
            if self.config.shard:
                self._build(membership.tokens.group if layout.sequence > 1 else None)
            assert self.pipeline is not None
            parallelize(self.pipeline, membership)
        else:
            if self.pipeline is None:
                self._build(None)
            assert self.pipeline is not None
            localize(self.pipeline, attention)
        return checks

    def holds_one_expert(self) -> bool:
        """Returns whether the device holds one of two transformers."""
        return self.pipeline is not None and self.pipeline.experts.one_at_a_time

    def leave(self) -> None:
        """Leaves the gang. Weights stay loaded, except for a share of a sharded transformer."""
        if dist.is_initialized():
            xdit.leave()
        self.writer.regroup()
        if self.config.shard:
            self.pipeline = None
            release()
        self.layout, self.rank = Layout(), 0

    def _build(self, group: dist.ProcessGroup | None) -> None:
        """Loads the pipeline.

        Args:
            group: of the ranks that share one copy of the transformer; None for a whole copy.
        """
        config = self.config
        if config.shard:
            write_log(f"reading the weights of rank {self.rank}'s share ({self.layout})")
        self.pipeline = None  # frees its memory for the new one
        room = Room(config.keep_projections or False, config.one_expert)
        if config.keep_projections is None:
            room = room_on(self.device, config)
        keep = room.keep_projections
        sharder = None if group is None else partial(shard, group=group, keep_projections=keep)
        self.pipeline = LynxPipeline.from_files(
            config.weights, config.face, dtype=self.dtype, vae_dtype=config.vae_dtype, device=self.device,
            shard=sharder, keep_projections=keep, one_expert=room.one_expert,
        )  # fmt: skip
        self.pipeline.inputs.encoded_prompts = self._prompts
        self.writer.take(self.pipeline.vae)

    def prepare(self, order: RenderOrder) -> int:
        """Rank 0: reads the subject, or finds it in the cache, and draws the noise.

        If it raises, ``render`` does nothing, and the ranks can take the next shot.

        Returns:
            Steps that the shot's resume state has done, after which ``render`` resumes; 0 without a resume state.

        Raises:
            SubjectError: picture, landmarks or embedding cannot be used.
        """
        assert self.pipeline is not None
        self._inputs = None
        self._inputs = self._preparation.make(self.pipeline, order.shot, order.subject_key, order.crops)
        done = load_resume_state(order.resume_state, order.digest, torch.device("cpu")).steps_done
        self._pulse.prepare(done, order.shot.sampling.num_inference_steps)
        return done

    def render(self, order: RenderOrder) -> bool:
        """Every rank of the gang at once: denoises and decodes a prepared shot. Does nothing if ``prepare`` failed.

        Rank 0 saves the latents, and keeps the frames for ``finish``. With ``until``, the frames are a preview.

        Returns:
            Whether the shot is decoded. With ``first_expert`` it may be left with a resume state instead.

        Raises:
            Stopped: on rank 0, after ``stop`` was called and the resume state was saved. Its peers keep waiting.
        """
        assert self.pipeline is not None
        sampling = order.shot.sampling
        with logged_to(order.log(self.rank)):
            self.pipeline.conditioning.counts.clear()
            began = time.perf_counter()
            inputs, self._inputs = self._inputs, None
            state = None
            if self.rank == 0:
                damaged = partial(self._set_damaged_aside, STATE_DAMAGED)
                state = load_resume_state(order.resume_state, order.digest, self.device, damaged)
            if self.layout.size > 1:
                inputs = broadcast(inputs, ShotInputs, device=self.device)
            if inputs is None:
                return False
            if self.layout.size > 1:
                state = broadcast(state, ResumeState, device=self.device)
            assert state is not None
            switch = self.pipeline.steps_before_switch(sampling) if order.first_expert else None
            if switch is not None and state.steps_done >= switch:
                return False
            # A state that is beyond the order's last step lacks the prediction, so one more step is made.
            predict_at = None if order.until is None else max(order.until, state.steps_done + 1)
            until = predict_at or switch
            saver = None
            if self.rank == 0:
                saver = StateSaver(order.resume_state, order.digest, self.config.save_every, until)
            total = predict_at or sampling.num_inference_steps
            steps = Steps(self._pulse, state.steps_done, total, lambda: self._stop, saver, predict_at)
            latents = self.pipeline.denoise(inputs, sampling, steps.after, state, until)
            counts, took = self._earlier.pop(order.digest, (Counter(), 0.0))
            counts, took = counts + self.pipeline.conditioning.counts, took + time.perf_counter() - began
            if switch is not None:
                self._earlier[order.digest] = counts, took
                return False
            if steps.predicted is not None:
                latents = steps.predicted
            seconds = {"denoise": took}
            began = time.perf_counter()
            frames, exactness = self.writer.decode(latents, self.layout, self.rank)
            seconds["decode"] = time.perf_counter() - began
            if self.rank != 0:
                return True
            assert frames is not None
            if (kernel := self._kernel(need_lse=self.layout.ring > 1)).name != self._kernel().name:
                exactness["attention"] = kernel.name
            if predict_at is None:
                metadata = latents_metadata(order.digest, order.settings)
                self.writer.save_latents(latents, order.parts["latents"], metadata)
            subject = "subject kept" if self._preparation.from_cache else "subject"
            conditioning = {**counts, subject: 1}
            warnings, self._warnings = (*self._preparation.warnings, *self._warnings), ()
            self.writer.keep(order, Decoded(frames, seconds, exactness, conditioning, warnings, predict_at or 0))
            return True

    def finish(self, order: RenderOrder) -> Rendered:
        """Rank 0: encodes a shot that ``render`` has decoded, in another thread, beside ``render`` of the next shot."""
        return self.writer.finish(order)

    def prepare_ahead(self, shot: Shot, subject_key: str) -> None:
        """Rank 0: finds the face of the next shot's subject. If it raises, ``prepare`` tries again."""
        if self.pipeline is not None:
            self._preparation.look_ahead(self.pipeline, shot, subject_key)

    def encode(self, order: EncodeOrder) -> Rendered:
        """Rank 0: makes the video again from saved latents; see ``OutputWriter.encode``."""
        with logged_to(order.logs / "rank0.log"):
            return self.writer.encode(order)

    def _set_damaged_aside(self, reason: str, path: Path) -> None:
        """Moves a damaged file to ``.lynx/damaged/``, and adds a warning to the next sidecar."""
        self._warnings = (*self._warnings, move_damaged(path, reason))
