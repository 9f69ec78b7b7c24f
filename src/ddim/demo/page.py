"""The demo's page: plain string templates, one style sheet, pictures in files beside it."""

from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from ..cli.session import psnr
from .markup import command, db, duration, image, last_part, settings, small, subject, table, whole
from .pictures import span
from .plot import ROUNDING, psnr_plot

Results = Mapping[str, Any]

_TITLES = {
    "samples": "Samples",
    "noise": "Steps and noise",
    "consistency": "One noise, many S",
    "inversion": "There and back",
    "between": "Between pictures",
    "words": "Words to pictures",
    "edits": "Edits of real pictures",
    "next": "What to type next",
}
_METHODS = {
    "ddim": "The plain way back: each step takes the ε of the point before it, and so leaves a small error.",
    "ddim5": "The same step, solved as the implicit equation that it is by five fixed-point iterations.",
    "heun": "A second-order step in both directions: the error shrinks faster with S.",
    "edict": "Two coupled sequences, each stepped with the other’s ε; algebra undoes it.",
    "bdia": "Each step is corrected by the one before it, so that it can be undone.",
    "belm": "Leapfrog with the true, uneven steps: second order, and undone by algebra.",
}
_TOLD = ("iterations", "p", "gamma")


def render(results: Results, out: str) -> str:
    """The page as one string of HTML.

    Args:
        results: what ``results.json`` holds.
        out: the folder as it was typed, for the commands at the end.
    """
    style = resources.files("ddim.demo").joinpath("page.css").read_text(encoding="utf-8")
    sections = [_samples, _noise, _consistency, _inversion, _between]
    sections += [_words, _edits] if results.get("editor") else []
    main = "\n".join([*(make(results) for make in sections), _next(results, out)])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ddim: diffusion that runs both ways</title>
<style>
{style}</style>
</head>
<body>
{_header(results)}
<main>
{main}
</main>
{_footer(results)}
</body>
</html>
"""


def _header(results: Results) -> str:
    model, machine = results["model"], results["machine"]
    channels, height, width = model["shape"]
    schedule = model.get("schedule", {}).get("beta_schedule", model["path"])
    facts = [
        ("model", last_part(model["name"]), f"fingerprint {model['fingerprint'][:12]}"),
        ("network", f"{model['parameters'] / 1e6:.2f} million weights", f"predicts {model['prediction']}"),
        ("pictures", f"{width} × {height}, {'grey' if channels == 1 else 'colour'}", "unconditional"),
        ("noise levels", f"T = {model['levels']}", f"{schedule} schedule, {model['spacing']} spacing"),
        (
            "machine",
            machine.get("gpu") or machine["processor"],
            f"{machine['cores']} cores, torch {machine['torch']}, {model['dtype']}",
        ),
        ("this page", duration(results["seconds"]["all"]), f"{whole(results['network_calls'])} network calls"),
    ]
    cells = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(str(b))}<small>{escape(str(c))}</small></dd></div>" for a, b, c in facts
    )
    here = {key: title for key, title in _TITLES.items() if key in results or key == "next"}
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title in here.items())
    return f"""<header>
<h1>Diffusion that runs both ways</h1>
<p class="lede">A diffusion model turns noise into pictures. With DDIM the same network also walks the other way: from a
real picture back to the noise it would have come from, and forward again. Everything below was made by small models
and one command, with the error measured wherever there is something to compare with.</p>
{command(results["command"])}
<dl class="facts">{cells}</dl>
<nav>{links}</nav>
</header>"""


def _section(key: str, lead: str, *parts: str) -> str:
    return "\n".join([f'<section id="{key}">', f"<h2>{_TITLES[key]}</h2>", f"<p>{lead}</p>", *parts, "</section>"])


def _samples(results: Results) -> str:
    longest = results["samples"][-1]["steps"]
    figures = []
    for one in results["samples"]:
        count = len(one["seeds"])
        about = settings(
            f"<b>S = {one['steps']}</b>",
            "η = 0",
            f"seeds {span(one['seeds'])}",
            f"{one['nfe']:g} calls a picture",
            f"{duration(one['seconds'])}, {count / one['seconds']:.3g} pictures/s" if one["seconds"] else "",
            _to_longest(one, longest),
        )
        picture = image(one["file"], f"{count} samples at S = {one['steps']}")
        figures.append(f"<figure>{picture}<figcaption>{about}</figcaption>{command(one['command'])}</figure>")
    return _section(
        "samples",
        f"{len(results['samples'][0]['seeds'])} pictures from noise, none of them chosen, with the same seeds on every "
        "sheet. Fewer steps give mostly the same pictures, much sooner.",
        f'<div class="three">{"".join(figures)}</div>',
    )


def _noise(results: Results) -> str:
    cells: dict[int, list[Results]] = {}
    for one in results["noise"]:
        cells.setdefault(one["steps"], []).append(one)
    first = next(iter(cells.values()))
    rows = []
    for steps, row in cells.items():
        pictures = []
        for one in row:
            alt = f"{len(one['seeds'])} samples at S = {steps}, {_noise_name(one['noise'])}"
            pictures.append(image(one["file"], alt) + settings(duration(one["seconds"]) or "from the sheet"))
        rows.append([f"S = {steps}", *pictures])
    shown = [next((o for o in results["noise"] if o["noise"] == kind), first[0]) for kind in ("0.5", "sigma-hat")]
    return _section(
        "noise",
        "η scales the fresh noise of each step: 0 is DDIM, 1 is DDPM, and σ̂ is DDPM with its larger variance. In Table "
        "1 of the paper (Song et al. 2021) noise costs quality where steps are few, σ̂ most of all. This is the same "
        "table, to look at.",
        f'<div class="wide">{table(["", *(_noise_name(o["noise"]) for o in first)], rows, "cells")}</div>',
        settings(
            f"seeds {span(first[0]['seeds'])} in every cell, so the same x<sub>T</sub>",
            "one call a step",
            "times on one thread",
        ),
        *(command(one["command"]) for one in shown),
    )


def _consistency(results: Results) -> str:
    last = results["consistency"][-1]["steps"]
    rows = []
    for one in results["consistency"]:
        label = f"<h3>S = {one['steps']}</h3>{settings(_to_longest(one, last) or 'the yardstick')}"
        picture = image(one["file"], f"{len(one['seeds'])} samples at S = {one['steps']}")
        rows.append(f'<div><div class="label">{label}</div>{picture}</div>')
    return _section(
        "consistency",
        "Each row starts from the same eight x<sub>T</sub> and takes another number of steps. What a picture shows is "
        "mostly settled by its x<sub>T</sub>; more steps add detail, now and then another reading. So x<sub>T</sub> "
        "is a code for the picture, and the rest of this page uses it as one.",
        f'<div class="rows">{"".join(rows)}</div>',
        settings("η = 0", f"seeds {span(results['consistency'][0]['seeds'])}", f"PSNR against S = {last}"),
        command(results["consistency"][0]["command"]),
    )


def _inversion(results: Results) -> str:
    data = results["inversion"]
    lines = [
        (one["label"], one["exact"], {c["steps"]: c["psnr"] for c in data["curve"] if c["method"] == one["method"]})
        for one in data["methods"]
    ]
    grid = sorted(lines[0][2])
    rows = [
        [f'<span class="dot s{k}"></span>{escape(label)}', *(db(points[s]) for s in grid)]
        for k, (label, _, points) in enumerate(lines)
    ]
    numbers = table(["PSNR in dB", *(f"S = {s}" for s in grid)], rows, "numbers-table")
    exact = [value for _, kind, points in lines for value in points.values() if kind and value is not None]
    below = ", and lies below that of a picture’s 8 bits" if min(exact, default=ROUNDING) >= ROUNDING else ""
    plot = psnr_plot(lines, f"PSNR of what came back against S = {', '.join(map(str, grid))}, a line a method")
    return _section(
        "inversion",
        f"{len(data['images'])} pictures that the model has never seen, walked back to noise in S = {data['steps']} "
        "steps and forward again in as many. Errors are over values from 0 to 1. The latent is drawn from −3 (black) "
        f"to 3 (white), the difference {data['amplified']} times as strong as it is. Plain areas leave latents that "
        "are smoother than noise: a known limit of every deterministic way back.",
        *(_method(k, one, data) for k, one in enumerate(data["methods"])),
        '<h3 class="later">How near, for how many steps</h3>',
        "<p>The approximate ways back (dashed) need many steps. The exact ones (solid) do not: what error is left "
        f"comes from the rounding of the machine’s own numbers{below}.</p>",
        f'<div class="curve"><div>{plot}</div><div>{numbers}{_psnr_note(len(data["images"]))}</div></div>',
    )


def _psnr_note(count: int) -> str:
    return settings("PSNR = −10 log<sub>10</sub> MSE", f"MSE over all {count} pictures")


def _method(k: int, one: Results, data: Results) -> str:
    count, files, label = one["pictures"], one["files"], one["label"]
    same = "all" if one["same_png"] == count else "none" if one["same_png"] == 0 else str(one["same_png"])
    about = settings(
        f"S = {one['steps']}",
        escape(", ".join(f"{key} = {value:g}" for key, value in one["options"].items() if key in _TOLD)),
        f"{one['nfe']['invert']:g} + {one['nfe']['reconstruct']:g} calls a picture",
        duration(one["seconds"]),
        escape(one["paper"]),
    )
    views = [
        ("original", data["originals"], "the real pictures"),
        ("latent", files["latent"], f"standard deviation {one['latent_std']:.2f}, that of noise is 1"),
        ("reconstruction", files["reconstruction"], f"{same} of {count} the same PNG to the bit"),
        ("difference", files["difference"], f"× {data['amplified']}; the largest is {small(one['max'])}"),
    ]
    figures = "".join(
        f"<figure>{image(file, f'{what}: {label}')}<figcaption><b>{what}</b> {text}</figcaption></figure>"
        for what, file, text in views
    )
    kind = "exact" if one["exact"] else "approximate"
    return f"""<div class="method">
<h3><span class="dot s{k}"></span>{escape(one["label"])} <span class="set">{kind}</span></h3>
<p>{_METHODS.get(one["method"], "")}</p>
<div class="numbers"><strong>{db(one["psnr"])} dB</strong><span>MSE {small(one["mse"])}</span></div>
{about}
<div class="quad">{figures}</div>
{command(one["command"])}
</div>"""


def _between(results: Results) -> str:
    data = results["between"]

    def figure(key: str, text: str, kind: str = "") -> str:
        one = data[key]
        about = settings(
            f"<b>{(', ' if key == 'corners' else ' → ').join(map(subject, one['between']))}</b>",
            f"{one['method']}, S = {one['steps']}",
            f"{one['count']} pictures",
            duration(one["seconds"]),
            f"MSE {small(one['mse_at_ends'])} where the real pictures are",
        )
        caption = f"<figcaption>{text}{about}</figcaption>{command(one['command'])}"
        return f'<figure class="{kind}">{image(one["file"], text)}{caption}</figure>'

    return _section(
        "between",
        "Codes can be mixed. Every point on the arc between the DDIM latents of two real pictures (slerp) comes "
        "forward to a picture. The ends are the real pictures themselves, brought back by an exact method.",
        figure("row", "From one real picture to another in eleven frames."),
        figure("chain", "A chain through four of them."),
        figure("corners", "Four in the corners, and what lies between.", "square"),
    )


def _words(results: Results) -> str:
    one, model = results["words"], results["editor"]
    about = settings(
        f"<b>{escape(last_part(model['name']))}</b>, {model['parameters'] / 1e6:.1f} million weights",
        f"S = {one['steps']}, guidance {one['guidance']:g}",
        f"{one['nfe']:g} calls a picture",
        duration(one["seconds"]),
    )

    def figure(file: str, prompts: list[str], what: str, line: str) -> str:
        under = f"<figcaption>{about}<p>{escape(' · '.join(prompts))}</p></figcaption>{command(line)}"
        return f"<figure>{image(file, what)}{under}</figure>"

    parts = []
    if one.get("known_file"):
        what = "what the model draws from prompts that it knows"
        parts.append(figure(one["known_file"], one["known"], what, one["known_command"]))
        parts.append(
            "<p>Prompts that it was never trained on: the real drawing, and below it what the model makes of the "
            "words. Some carry over, some do not.</p>"
        )
    what = "real drawings, and what the model draws from their prompts"
    parts.append(figure(one["file"], one["prompts"], what, one["command"]))
    return _section(
        "words",
        "A small Stable Diffusion draws what a prompt says: a drawing style, and the name of a thing.",
        "".join(parts),
    )


def _edits(results: Results) -> str:
    figures = []
    for one in results["edits"]:
        near = ", ".join(db(value) for value in one["psnr"])
        about = settings(
            f"<b>{escape(one['label'])}</b>",
            f"S = {one['steps']}, guidance {one['guidance']:g}",
            f"source back at {near} dB",
            f"{one['nfe']:g} calls a picture",
            duration(one["seconds"]),
        )
        picture = image(one["file"], f"three edits by {one['label']}: source, reconstruction, edit, answer")
        figures.append(f"<figure>{picture}<figcaption>{about}</figcaption>{command(one['command'])}</figure>")
    asked = "; ".join(f"{a} → {b}" for a, b in results["edits"][0]["edits"])
    return _section(
        "edits",
        f"Real pictures, changed by words: {escape(asked)}. In each row the source, what comes back of it, the edit, "
        "and the real drawing that would have been the answer; the model saw none of the sources.",
        f'<div class="three">{"".join(figures)}</div>',
    )


def _next(results: Results, out: str) -> str:
    name = results["model"]["name"]
    model = "" if name == "fashion" else f" --model {name}"
    one = results["inversion"]["images"][0]
    steps = results["inversion"]["steps"]
    original = f"{out}/originals/{one}.png"
    lines = [
        ("Sixteen pictures with another seed.", f"ddim sample --seed 42 --scale 4{model}"),
        (
            "A real picture to its code; the command says how near it comes back.",
            f"ddim invert {original} --method bdia --steps {steps}{model}",
        ),
        (
            "The code back to a picture, compared with the original.",
            f"ddim reconstruct {one}_bdia_S{steps}.code.safetensors --original {original}",
        ),
        ("A folder of your own pictures, fitted to the model.", f"ddim invert photos/*.png --resize{model}"),
        ("A pixel model from the hub, in ten steps.", "ddim sample --model google/ddpm-cifar10-32 --steps 10"),
        ("Every solver, inversion and spacing, with its options.", "ddim methods"),
        ("A model of your own, from a folder of pictures.", "ddim train recipes/fashion.toml"),
    ]
    items = "".join(f"<li><p>{escape(text)}</p>{command(line)}</li>" for text, line in lines)
    return _section(
        "next",
        "Every file names its settings and carries them inside; <code>--json</code> prints them for machines.",
        f'<ol class="next">{items}</ol>',
    )


def _footer(results: Results) -> str:
    machine, model = results["machine"], results["model"]
    spent = ", ".join(
        f"{title.lower()} {duration(results['seconds'][key])}"
        for key, title in _TITLES.items()
        if results["seconds"].get(key)
    )
    licence = f" Model: {escape(model['licence'])}." if model.get("licence") else ""
    if last_part(model["name"]) == "fashion":
        licence += " Test pictures: Fashion-MNIST, © 2017 Zalando SE, MIT."
    if results.get("editor"):
        owners = "; ".join(owner.partition("; ")[0] for owner in results["edits"][0]["owners"])
        licence += f" Drawings, resized: {escape(owners)}." if owners else ""
    return (
        f"<footer><p>ddim {escape(results['ddim'])}, Python {escape(machine['python'])}, {escape(machine['system'])}, "
        f"{machine['workers']} jobs at once: {spent}. "
        f'All numbers are in <a href="results.json">results.json</a>.{licence}</p></footer>'
    )


def _to_longest(one: Results, longest: int) -> str:
    mse = one.get("mse_to_longest")
    return f"{db(psnr(mse))} dB to S\u00a0=\u00a0{longest}" if mse else ""


def _noise_name(name: str) -> str:
    return "σ̂" if name == "sigma-hat" else f"η = {name}"
