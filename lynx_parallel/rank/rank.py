"""A rank: one process that holds the weights, stays alive, and is part of at most one gang."""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import ray
import torch
import torch.distributed as dist

import lynx_parallel
from lynx_parallel.errors import RenderError, Stopped
from lynx_parallel.failures import remedy_for
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.model_config import transformer_config
from lynx_parallel.model.attention import Kernel, choose_kernel
from lynx_parallel.model.precision import use_ieee
from lynx_parallel.output.atomic import set_aside
from lynx_parallel.output.waiting import latents_metadata
from lynx_parallel.parallel import xdit
from lynx_parallel.parallel.apply import localize, parallelize
from lynx_parallel.parallel.broadcast import broadcast
from lynx_parallel.parallel.room import keeps_projections
from lynx_parallel.parallel.shard import release, shard
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.rank.converted import checked
from lynx_parallel.rank.environment import bind_network, threads_here
from lynx_parallel.rank.logs import logged_to, write_log
from lynx_parallel.rank.messages import Check, EncodeOrder, Hello, Progress, RankConfig, Rendered, RenderOrder
from lynx_parallel.rank.output_writer import OutputWriter
from lynx_parallel.rank.preparation import Preparation
from lynx_parallel.rank.resume_states import StateSaver
from lynx_parallel.rank.selfcheck import check_encoder, check_group, check_rank
from lynx_parallel.stages.denoise import Step
from lynx_parallel.stages.prompt import PromptFolder, encode_prompts
from lynx_parallel.stages.resume_state import ResumeState, load_resume_state
from lynx_parallel.text import first_line

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
LEASE = 1.5
"""Times ``hung_after`` without a word from the driver, after which a rank ends its shot."""
PROBE_WITHIN_S = 5.0


class Rank:
    """What a rank's process does; ``rank.actor`` makes it a Ray actor."""

    def __init__(self, device: str, sharing: int, config: RankConfig):
        torch.set_num_threads(threads_here(sharing))
        use_ieee()
        self.device = torch.device(device)
        self.config = config
        bind_network(ray.util.get_node_ip_address())
        self.rank = 0
        self.layout = Layout()
        self.pipeline: LynxPipeline | None = None
        self._kernels: dict[bool, Kernel] = {}
        self._unsaid: tuple[str, ...] = ()
        self.writer = OutputWriter(config, self.device, self._waits)
        damaged_text = functools.partial(self._damaged, "the prompt's embedding is damaged and is made again")
        self._prompts = {} if config.prompts is None else PromptFolder(config.prompts.path, damaged_text)
        self._preparation = Preparation()
        self._inputs: ShotInputs | None = None
        self._progress = Progress(0, 0, 0.0)
        self._stepped = time.monotonic()
        self._waits_for = ""
        self._heard = time.monotonic()
        self._stop = False
        self._saver: StateSaver | None = None

    def hello(self) -> Hello:
        """Returns what the driver needs to know of this rank. Called first: Ray gives no reason if a constructor fails.

        A GPU or a kernel that does not work is reported by ``check``, so that this rank can be left out.
        """
        device, node, gpu = "cpu", "", ""
        if ray.is_initialized():
            context = ray.get_runtime_context()
            node = context.get_node_id()
            gpu = next(iter(context.get_accelerator_ids()["GPU"]), "")
        kernel = "none"
        warnings: tuple[str, ...] = ()
        with suppress(Exception):
            if self.device.type == "cuda":
                device = "cuda"
                device = torch.cuda.get_device_name(0)
            kernel, _, warnings = self._kernel()
        version = lynx_parallel.__version__
        return Hello(os.getpid(), socket.gethostname(), device, kernel, version, node, gpu, warnings)

    def _kernel(self, *, need_lse: bool = False) -> Kernel:
        """Returns the attention kernel. A ring needs one that gives the log-sum-exp."""
        if need_lse not in self._kernels:
            dtype = getattr(torch, self.config.dtype)
            made = choose_kernel(self.config.attention, self.device, dtype, need_lse=need_lse)
            self._kernels[need_lse] = made
            if need_lse:  # chosen after ``hello``
                self._unsaid = tuple(line for line in made.warnings if line not in self._kernel().warnings)
        return self._kernels[need_lse]

    def progress(self) -> Progress:
        """How far the shot at hand is; answers while ``render`` blocks. Who asks keeps the rank at work."""
        self._heard = time.monotonic()
        return replace(self._progress, age=time.monotonic() - self._stepped, waits_for=self._waits_for)

    def stop(self) -> None:
        """Rank 0: after the step at hand, save the resume state and end the shot with ``Stopped``."""
        self._stop = True

    def misses(self, probe: Path, needed: Sequence[Path]) -> list[str]:
        """What the driver sees and this machine does not, or cannot write; in words.

        Args:
            probe: a file the driver has just made in its output folder; to see it may take a shared folder a moment.
            needed: other files and folders.
        """
        deadline = time.monotonic() + PROBE_WITHIN_S
        while not probe.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        if not probe.exists():
            return [f"{probe.parent.parent}, the output folder"]
        if not os.access(probe.parent, os.W_OK):
            return [f"{probe.parent.parent}, the output folder, to write to it"]
        return [str(path) for path in needed if not path.exists()]

    def check(self, output: Path) -> list[Check]:
        """Checks what this rank needs by itself, in seconds. Called before the weights are loaded."""
        try:
            kernel = self._kernel()
        except Exception as error:
            remedy = remedy_for(f"{type(error).__name__}: {error}", host=socket.gethostname())
            return [Check("attention", False, 0.0, first_line(error), remedy)]
        checks = check_rank(self.device, getattr(torch, self.config.dtype), kernel.name, kernel.attention, output)
        return [*checks, *(check_encoder(self.config.video, *size, output / ".lynx") for size in self.config.formats)]

    def encode_prompts(self, prompts: list[str]) -> None:
        """Rank 0: makes prompt embeddings for all gangs. Frees the text encoder before the other weights are loaded."""
        dtype = getattr(torch, self.config.dtype)
        encode_prompts(self.config.weights.base, prompts, self._prompts, dtype=dtype, device=self.device)

    def load(self) -> None:
        """Loads the weights; a sharded transformer waits for ``join``, which knows this rank's share."""
        if not self.config.denoise:
            self.writer.load()
            return
        weights, line = checked(self.config.weights)
        if line:
            self.config, self._unsaid = replace(self.config, weights=weights), (*self._unsaid, line)
            write_log(line)
        if not self.config.shard:
            self._build(None)

    def open_store(self) -> tuple[str, int]:
        """Rank 0: the gang's meeting place; its port is bound here, so no two gangs race for one."""
        host = ray.util.get_node_ip_address()
        # Left to itself, the store listens on every interface, and asks nobody for a token.
        listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        port = listening.getsockname()[1]
        self._store = dist.TCPStore(
            host, port, None, True, COLLECTIVE_TIMEOUT, wait_for_workers=False, multi_tenant=True,
            master_listen_fd=listening.detach(),
        )  # fmt: skip
        return host, self._store.port

    def join(self, layout: Layout, rank: int, store: tuple[str, int]) -> list[Check]:
        """Becomes rank ``rank`` of a gang of this layout; blocks until its peers have joined.

        Weights stay as they are, unless they are sharded: each rank then reads its share of the new group.

        Returns:
            The checks of the gang's collectives, one per axis.

        Raises:
            ClusterError: the attention kernel asked for does not give the log-sum-exp that a ring needs.
        """
        self.layout, self.rank = layout, rank
        checks: list[Check] = []
        if not self.config.denoise:
            return checks
        attention = self._kernel(need_lse=layout.ring > 1).attention
        if layout.size > 1:
            mine = self._store if rank == 0 else dist.TCPStore(*store, None, False, COLLECTIVE_TIMEOUT)
            membership = xdit.join(
                layout, rank=rank, store=mine, device=self.device, kernel=attention,
                transformer_config=transformer_config(self.config.weights), timeout=COLLECTIVE_TIMEOUT,
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

    def leave(self) -> None:
        """Leaves the gang; weights stay, but for a share of a sharded transformer."""
        if dist.is_initialized():
            xdit.leave()
        self.writer.regroup()
        if self.config.shard:
            self.pipeline = None
            release()
        self.layout, self.rank = Layout(), 0

    def _build(self, group: dist.ProcessGroup | None) -> None:
        if self.config.shard:
            write_log(f"reading the weights of rank {self.rank}'s share ({self.layout})")
        self.pipeline = None  # before the new one takes its memory
        dtype, weights = getattr(torch, self.config.dtype), self.config.weights
        keep = self.config.keep_projections
        if keep is None:
            keep = self._has_room()
        sharder = None if group is None else functools.partial(shard, group=group, keep_projections=keep)
        self.pipeline = LynxPipeline.from_files(
            weights, self.config.face, dtype=dtype, vae_dtype=self.config.vae_dtype, device=self.device, shard=sharder,
            keep_projections=keep,
        )  # fmt: skip
        self.pipeline.encoded_prompts = self._prompts
        self.writer.take(self.pipeline.vae)

    def _has_room(self) -> bool:
        """Returns whether idle projections may stay on the device.

        On the CPU they stay in the file: mapping them again costs next to nothing (benchmarks/conditioning.py).
        """
        if self.device.type != "cuda":
            return False
        memory, config = torch.cuda.get_device_properties(self.device).total_memory, self.config
        return keeps_projections(
            config.weights,
            memory,
            dtype=config.dtype,
            sharded=config.shard,
            tiled_decode=config.tiled_decode,
            tasks=config.tasks,
        )

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
        self._stepped, self._progress = time.monotonic(), Progress(done, order.shot.sampling.num_inference_steps, 0.0)
        return done

    def render(self, order: RenderOrder) -> Rendered | None:
        """Every rank of the gang at once: denoises a prepared shot; rank 0 decodes, encodes and writes.

        Raises:
            Stopped: on rank 0, once ``stop`` was called and the resume state is saved; its peers are left waiting.

        Returns:
            On rank 0 what was made; None on the others, and on all if ``prepare`` failed.
        """
        assert self.pipeline is not None
        shot, sampling = order.shot, order.shot.sampling
        with logged_to(order.log(self.rank)):
            self.pipeline.conditioning.counts.clear()
            began = time.perf_counter()
            inputs, self._inputs = self._inputs, None
            damaged = functools.partial(self._damaged, "the resume state is damaged; the shot begins at its first step")
            state = None
            if self.rank == 0:
                state = load_resume_state(order.resume_state, order.digest, self.device, damaged)
            if self.layout.size > 1:
                inputs = broadcast(inputs, ShotInputs, device=self.device)
            if inputs is None:
                return None
            if self.layout.size > 1:
                state = broadcast(state, ResumeState, device=self.device)
            assert state is not None
            self._saver = None
            if self.rank == 0:
                self._saver = StateSaver(order.resume_state, order.digest, self.config.save_every)
            self._stepped = self._heard = time.monotonic()
            self._progress = Progress(state.steps_done, sampling.num_inference_steps, 0.0)
            if state.steps_done:
                write_log(f"resuming at step {state.steps_done + 1}")
            latents = self.pipeline.denoise(inputs, sampling, self._on_step, state)
            seconds = {"denoise": time.perf_counter() - began}
            began = time.perf_counter()
            frames, how = self.writer.decode(latents, self.layout, self.rank)
            seconds["decode"] = time.perf_counter() - began
            if self.rank != 0:
                return None
            if (kernel := self._kernel(need_lse=self.layout.ring > 1)).name != self._kernel().name:
                how["attention"] = kernel.name
            made = self.writer.write(
                frames,
                latents,
                shot,
                order.video,
                order.parts,
                seconds,
                how,
                latents_metadata(order.digest, order.settings),
            )
            conditioning = {
                **self.pipeline.conditioning.counts,
                "subject kept" if self._preparation.from_cache else "subject": 1,
            }
            warnings, self._unsaid = (*self._preparation.warnings, *self._unsaid), ()
            return replace(made, conditioning=conditioning, warnings=warnings)

    def encode(self, order: EncodeOrder) -> Rendered:
        """Rank 0: makes the video again from saved latents; see ``OutputWriter.encode``."""
        with logged_to(order.logs / "rank0.log"):
            return self.writer.encode(order)

    def _damaged(self, what: str, path: Path) -> None:
        """Moves a damaged file of a folder of ``.lynx`` to ``.lynx/damaged/`` and has the next sidecar say so."""
        line = f"{path}: {what}"
        with suppress(OSError):
            line += f"; moved to {set_aside(path, path.parent.parent / 'damaged')}"
        write_log(line)
        self._unsaid = (*self._unsaid, line)

    def _waits(self, what: str) -> None:
        self._waits_for = what
        self._stepped = time.monotonic()  # it waits, it does not hang

    def _on_step(self, step: Step) -> None:
        self._stepped = time.monotonic()
        if (silent := self._stepped - self._heard) > LEASE * self.config.hung_after:
            # The driver has lost this rank and made the shot someone else's.
            raise RenderError(f"no word from the driver for {silent:.0f} s", "hung")
        self._progress = Progress(step.index + 1, step.total, 0.0)
        write_log(f"{time.strftime('%H:%M:%S')} step {step.index + 1}/{step.total}")
        if self._saver is None:
            return
        due = step.index + 1 < step.total and self._saver.due()
        saved = (self._stop or due) and self._saver.save(step)
        if self._stop:
            what = f"saved and stopped after step {step.index + 1} of {step.total}"
            raise Stopped(what if saved else f"{what}, which could not be saved")
