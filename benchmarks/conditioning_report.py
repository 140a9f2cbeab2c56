"""``benchmarks.conditioning``'s figures as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.machine import describe_in_words, table
from benchmarks.shapes import dim_of

STATIC_PARTS = 4
"""Of a forward's parts, the last, which static keys and values save."""


def median(times: dict[str, list[float]], clock: str = "wall") -> float:
    return statistics.median(times[clock])


def milliseconds(times: dict[str, list[float]], clock: str = "wall") -> str:
    return f"{median(times, clock) * 1e3:.1f}"


def report(data: dict[str, Any]) -> str:
    """All tables."""
    set_up, machine = data["configuration"], data["machine"]
    threads = data["threads"]
    verdicts = [
        [c["name"], f"{c['measured']:,}", f"{c['foretold']:,}", "equal" if c["met"] else "NOT EQUAL"]
        for c in data["criteria"]
    ]
    return (
        f"# Static conditioning\n\n{describe_in_words(machine)}\n"
        f"{threads} thread{'s' * (threads > 1)}; medians of {set_up['rounds']} rounds, modes taking turns, one round "
        f"before them unrecorded; {data['seconds_of_the_run']:.0f} s in all,\nload average after it "
        f"{data['load_after']}. Where others use the machine, processor seconds say more than wall seconds.\n"
        f"Random weights, fp32, batch 1; {set_up['text_tokens']} text tokens of {set_up['counted']['text_dim']} "
        f"channels, {set_up['id_tokens']} + {set_up['registers']} ID tokens, {set_up['reference_tokens']} reference "
        "tokens.\nMB and GB are 10⁶ and 10⁹ bytes.\n\n"
        "Model A: " + _size(set_up["counted"]) + f", {set_up['tokens']:,} tokens. Model B: " + _size(set_up["stored"])
        + ".\n\n## Criteria\n\n" + table(["", "counted", "formula", ""], verdicts)
        + "\n" + _forward(data) + "\n" + _memory(data) + "\n" + _borrowing(data) + "\n" + _spilling(data)
    )  # fmt: skip


def _size(config: dict[str, Any]) -> str:
    return f"dim {dim_of(config)}, {config['num_layers']} blocks, feed-forward {config['ffn_dim']}"


def _forward(data: dict[str, Any]) -> str:
    forward, big = data["forward"], data["computed_14b"]
    seconds, flops = forward["seconds"], forward["flops"]
    whole = sum(forward["parts"].values())
    parts = [[name, f"{n / 1e9:.3f}", f"{n / whole:.2%}"] for name, n in forward["parts"].items()]
    rows = []
    for mode in ("with", "without"):
        cells = [f"{flops[mode]['counted'] / 1e9:.2f}"]
        for clock in ("wall", "processor"):
            values = seconds[mode][clock]
            cells += [f"{median(seconds[mode], clock):.3f}", f"{min(values):.3f} … {max(values):.3f}"]
        rows.append([f"{mode} static K/V", *cells])
    cells = [f"{flops['without']['counted'] / flops['with']['counted']:.4f}"]
    for clock in ("wall", "processor"):
        pairs = zip(seconds["with"][clock], seconds["without"][clock], strict=True)
        ratios = sorted(without / static for static, without in pairs)
        cells += [f"{statistics.median(ratios):.3f}", f"{ratios[0]:.3f} … {ratios[-1]:.3f}"]
    rows.append(["without / with; of times, median of the rounds' ratios", *cells])
    per_rank = []
    for ranks in (1, 2, 4, 8):
        share, more = big["forward_flops"] / ranks, big["static_flops"]
        per_rank.append([str(ranks), f"{share / 1e12:.1f}", f"{more / 1e12:.2f}", f"{more / share:.2%}"])
    return (
        "## A forward\n\nModel A, one branch of one step. *With*: static K/V, made before. *Without*: the text "
        "embedder and all projections of\ntext, ID tokens and reference features run in every forward; the features "
        "themselves do not. Both give the same bits.\n\n"
        + table(["", "GFLOP", "s, wall", "least … most", "s, processor", "least … most"], rows) + "\n"
        + table(["part", "GFLOP", "share"], parts)
        + f"\nThe last {STATIC_PARTS} rows are what static K/V save.\n\n"
        "Computed, not measured: the same formula at 14B, 832×480×81 (32,760 tokens). Sequence parallelism divides a "
        "forward,\nwhile every rank would project all of the conditioning.\n\n"
        + table(["ranks", "forward with static K/V, TFLOP a rank", "projections, TFLOP a rank", "more"], per_rank)
    )  # fmt: skip


def _memory(data: dict[str, Any]) -> str:
    memory, big = data["memory"], data["computed_14b"]
    head = {
        "parameters": "living parameters", "others": "other tensors", "RssAnon": "anonymous RSS",
        "VmRSS": "RSS", "Pss": "PSS", "VmHWM": "peak RSS since start", "imported": "anonymous RSS before loading",
    }  # fmt: skip
    rows = [[f"projections {m}", *(f"{memory[m][key] / 1e6:.1f}" for key in head)] for m in memory]
    rows.append(["difference", *(f"{(memory['kept'][key] - memory['freed'][key]) / 1e6:.1f}" for key in head)])
    share = 1 - memory["freed"]["parameters"] / memory["kept"]["parameters"]
    projected = sum(big["projection_bytes"].values())
    large = [[kind, f"{n / 1e9:.2f}"] for kind, n in big["projection_bytes"].items()]
    large += [["together", f"{projected / 1e9:.2f}"], ["all parameters", f"{big['parameter_bytes'] / 1e9:.2f}"]]
    large += [["share", f"{projected / big['parameter_bytes']:.1%}"]]
    return (
        "## Living parameters\n\nModel B, stored in bf16, loaded as fp32; each row a process of its own, after the "
        "first step of a shot\nof three branches. MB. RSS and PSS count pages of mapped files: with projections freed "
        "the files stay mapped,\nand the kernel may take those pages back at any time. Anonymous RSS leaves them "
        "out.\n\n" + table(["", *head.values()], rows)
        + f"\n{share:.1%} of the parameters were freed. Both processes gave the same latents, bit by bit.\n\n"
        "Computed from shapes, not measured: 14B in bf16 (norms, time embedder and modulation in fp32).\n\n"
        + table(["projections of", "GB"], large)
        + f"\nThe static K/V of a shot of three branches then take {big['static_kv_bytes'] / 1e9:.2f} GB, projections "
        "freed or kept.\n"
    )  # fmt: skip


def _borrowing(data: dict[str, Any]) -> str:
    big = data["computed_14b"]["projection_bytes"]
    rows = []
    for kind, by_mode in data["borrowing"]["seconds"].items():
        cells = [f"{data['configuration']['projection_bytes'][kind] / 1e6:.1f}"]
        cells += [milliseconds(by_mode[mode], clock) for clock in ("wall", "processor") for mode in by_mode]
        kept = median(by_mode["kept"], "processor")
        cells += [f"{median(by_mode[mode], 'processor') / kept:.2f}" for mode in ("bf16", "fp32")]
        rows.append([kind, *cells])
    modes = ("kept", "borrowed, bf16", "borrowed, fp32")
    head = ["", "projections, MB in fp32", *(f"{m}: ms {clock}" for clock in ("wall", "processor") for m in modes)]
    head += ["bf16 / kept, processor", "fp32 / kept, processor"]
    return (
        "## Borrowing\n\nModel B: the K/V of all blocks, text embedder included; files warm in the page cache. *bf16*: "
        "read, converted,\nlet go. *fp32*: the file has the model's type, its pages are used in place. All three give "
        "the same bits.\n\n" + table(head, rows)
        + f"\nA prompt pays the row *text*, a subject the other two. At 14B in bf16 (computed) that is "
        f"{big['text'] / 1e9:.1f} GB read a prompt,\n{(big['identity'] + big['reference']) / 1e9:.1f} GB a subject.\n"
    )  # fmt: skip


def _spilling(data: dict[str, Any]) -> str:
    recompute, spilled, big = data["borrowing"]["recompute"], data["spilling"], data["computed_14b"]
    again = [[name, milliseconds(times), milliseconds(times, "processor")] for name, times in recompute.items()]
    both, rates, disk = {}, {}, []
    for name, found in spilled.items():
        times = found["seconds"]
        both[name] = median(times["write"]) + median(times["read"])
        rates[name] = found["bytes"] / both[name]
        cells = [milliseconds(times["write"]), milliseconds(times["read"]), f"{both[name] * 1e3:.1f}"]
        rate = f"{rates[name] / 1e6:.0f}"
        disk.append([name, f"{found['bytes'] / 1e6:.1f}", *cells, milliseconds(times["cold"]), rate])
    pairs = {
        "features": "features",
        "features and K/V": "features and K/V, projections kept",
        "K/V": "features and K/V, borrowed from bf16",
    }
    contest = []
    for on_disk, anew in pairs.items():
        # The lesser of both clocks: others may have slowed the wall's, a second thread doubles the processor's.
        quotient = min(median(recompute[anew], clock) for clock in ("wall", "processor")) / both[on_disk]
        faster = "disk" if quotient > 1 else "recomputing"
        contest.append([on_disk, anew, faster, f"{max(quotient, 1 / quotient):.1f}×"])
    break_even = []
    parts = {"features": ("features", 1), "K/V": ("K/V", 2), "features and K/V": ("K/V", 3)}
    for name, (flops, times) in parts.items():
        work, size = big["reference_flops"][flops], times * big["features_bytes"]
        rate = work / (size / rates[name])
        break_even.append([name, f"{work / 1e12:.2f}", f"{size / 1e6:.0f}", f"{rate / 1e12:.0f}"])
    of_a_video = 2 * big["reference_flops"]["K/V"] / (50 * 3 * big["forward_flops"])
    return (
        f"## Reference features: again, or from disk\n\nModel B; disk: {data['file_system']}. Written with fsync, read "
        "through a mapping, every page. *Dropped*: pages given back to the kernel\nbefore the reading; what lies below "
        "this machine's disk may still have them.\n\n"
        + table(["recomputed", "ms wall", "ms processor"], again) + "\n"
        + table(["on disk", "MB", "write, ms", "read, ms", "both, ms", "read, dropped, ms", "both, MB/s"], disk) + "\n"
        + table(["on disk", "against recomputing", "faster on this machine", "by"], contest)
        + "\nComputed, not measured: at 14B in bf16, from which rate on recomputing is faster than this disk's writing "
        "and reading.\n\n"
        + table(["", "TFLOP", "MB", "TFLOP/s to break even"], break_even)
        + f"\nBoth passes of a shot (subject, grey picture) with their K/V are {of_a_video:.4%} of the FLOPs "
        "of a video\nof 50 steps and three branches: so much can a disk save, and no more. With freed projections, "
        "making reference K/V anew\nalso reads "
        f"{big['projection_bytes']['reference'] / 1e9:.1f} GB of weights, which neither figure counts.\n"
    )  # fmt: skip
