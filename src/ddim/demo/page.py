"""The demo's page: HTML in string templates, with one style sheet and the pictures in files beside it."""

from collections.abc import Mapping
from html import escape
from importlib import resources
from shlex import quote
from typing import Any

from ..evaluation.metrics.pairwise import decibels
from .markup import command, db, duration, image, last_part, settings, small, subject, table, whole
from .page_stored import Line, distances, leaderboard, psnr_part, round_trip_curve, round_trip_lines, same_noise
from .pictures import span
from .plot import ROUNDING

Results = Mapping[str, Any]

TITLES = {
    "edits": "Edits of real pictures",
    "methods": "Edits by other methods",
    "inversion": "Round trips",
    "between": "Interpolation",
    "words": "Text to image",
    "samples": "Samples",
    "noise": "Steps and noise",
    "consistency": "Same noise, more steps",
    "next": "What to try next",
}
"""The title of each section, by its name in ``results.json``."""
_METHODS = {
    "ddim": "A DDIM step in the opposite direction. The exact inverse of a step needs ε at the image that it ends "
    "with. This method uses ε at the image that it starts from. Its error falls as S grows.",
    "ddim5": "The exact inverse of a DDIM step solves an implicit equation. Here five fixed-point iterations solve it "
    "approximately.",
    "heun": "A second-order step in both directions. Its error falls faster than that of DDIM.",
    "edict": "Two coupled sequences, each of which steps with the ε of the other. Algebra undoes each step.",
    "bdia": "Each step also uses the step before it, so that algebra can undo it.",
    "belm": "A leapfrog method for steps of unequal size. It is of second order, and algebra undoes each step.",
}
RELOAD = 5
"""Seconds after which a page that is still being made loads itself again."""
_SHOWN_OPTIONS = ("iterations", "p", "gamma")


def render(results: Results, out: str) -> str:
    """The page as one string of HTML.

    Args:
        results: the content of ``results.json``.
        out: the output folder as it was typed, for the commands at the end of the page.
    """
    style = resources.files("ddim.demo").joinpath("page.css").read_text(encoding="utf-8")
    make = {
        "edits": _edits,
        "methods": _methods,
        "inversion": _inversion,
        "between": _between,
        "words": _words,
        "samples": _samples,
        "noise": _noise,
        "consistency": _consistency,
    }
    parts = [make[key](results) for key in results["sections"] if key in results]
    if results["state"] == "complete":
        parts.append(_next(results, out))
    main, again = "\n".join(parts), ""
    if results["state"] == "making":
        again = f'<meta http-equiv="refresh" content="{RELOAD}">\n'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{again}<title>ddim: diffusion that runs both ways</title>
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
    here = {key: title for key, title in TITLES.items() if key in results}
    if results["state"] == "complete":
        here["next"] = TITLES["next"]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title in here.items())
    return f"""<header>
<h1>Diffusion that runs both ways</h1>
<p class="lede">A diffusion model turns noise into pictures. With DDIM the same network also runs in the opposite
direction: it turns a real picture into the noise that would produce it, and that noise back into the picture. With
another prompt on the way back, the picture is edited. One command made the pictures on this page.</p>
{command(results["command"])}
{_state(results)}<nav>{links}</nav>
</header>"""


def _state(results: Results) -> str:
    """What a page that is not complete says of itself."""
    missing = [TITLES[key] for key in results["sections"] if key not in results]
    if results["state"] == "making":
        text = f"This page is still being made, and loads itself again every {RELOAD} seconds. Still to come: "
    elif results["state"] == "ended":
        text = "The command ended before the page was complete. Run it again for the rest: "
    else:
        return ""
    return f'<p class="note">{text}{"; ".join(title.lower() for title in missing)}.</p>\n'


def _model(facts: Results) -> tuple[str, str]:
    """A model's name, and its size and pictures."""
    _, height, width = facts.get("picture") or facts["shape"]
    colour = "grey" if facts["shape"][0] == 1 else "colour"
    text = f"{facts['parameters'] / 1e6:.1f} million weights, {width} × {height} in {colour}, T = {facts['levels']}"
    return last_part(facts["name"]), text


def _section(key: str, lead: str, *parts: str) -> str:
    return "\n".join([f'<section id="{key}">', f"<h2>{TITLES[key]}</h2>", f"<p>{lead}</p>", *parts, "</section>"])


def _samples(results: Results) -> str:
    longest = results["samples"][-1]["steps"]
    figures = []
    for one in results["samples"]:
        count = len(one["seeds"])
        about = settings(
            f"<b>S = {one['steps']}</b>",
            "η = 0",
            f"seeds {span(one['seeds'])}",
            f"{one['nfe']:g} network calls per picture",
            f"{duration(one['seconds'])}, {count / one['seconds']:.3g} pictures/s" if one["seconds"] else "",
            f"PSNR {to_longest}" if (to_longest := _to_longest(one, longest)) else "",
        )
        picture = image(one["file"], f"{count} samples at S = {one['steps']}")
        figures.append(f"<figure>{picture}<figcaption>{about}</figcaption>{command(one['command'])}</figure>")
    return _section(
        "samples",
        f"Each sheet shows {len(results['samples'][0]['seeds'])} samples from the same seeds, without any selection. "
        "Fewer steps give mostly the same pictures in much less time.",
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
            pictures.append(image(one["file"], alt) + settings(duration(one["seconds"]) or "from the sheet above"))
        rows.append([f"S = {steps}", *pictures])
    shown = [next((o for o in results["noise"] if o["noise"] == kind), first[0]) for kind in ("0.5", "sigma-hat")]
    threads = results["machine"]["threads"]
    return _section(
        "noise",
        "η scales the noise that each step adds: η = 0 is DDIM, η = 1 is DDPM, and σ̂ is DDPM with a larger variance. "
        "Table 1 of the DDIM paper (Song et al. 2021) shows that added noise lowers the quality when there are few "
        "steps, and that σ̂ lowers it most. This table shows pictures for the same settings.",
        f'<div class="wide">{table(["", *(_noise_name(o["noise"]) for o in first)], rows, "cells")}</div>',
        settings(
            f"seeds {span(first[0]['seeds'])} in every cell, so every cell starts from the same x<sub>T</sub>",
            "one network call per step",
            f"times on {threads} {'thread' if threads == 1 else 'threads'}",
        ),
        *(command(one["command"]) for one in shown),
        distances(results),
    )


def _consistency(results: Results) -> str:
    last = results["consistency"][-1]["steps"]
    rows = []
    for one in results["consistency"]:
        label = f"<h3>S = {one['steps']}</h3>{settings(_to_longest(one, last) or 'the reference')}"
        picture = image(one["file"], f"{len(one['seeds'])} samples at S = {one['steps']}")
        rows.append(f'<div><div class="label">{label}</div>{picture}</div>')
    return _section(
        "consistency",
        "Each row starts from the same eight noise images x<sub>T</sub> and takes a different number of steps. "
        "x<sub>T</sub> determines most of what a picture shows. More steps add detail, and sometimes change the "
        "subject. So x<sub>T</sub> is a code for the picture, and inversion finds it for a real one.",
        f'<div class="rows">{"".join(rows)}</div>',
        settings("η = 0", f"seeds {span(results['consistency'][0]['seeds'])}", f"PSNR against S = {last}"),
        command(results["consistency"][0]["command"]),
        "" if results["full"] else same_noise(results),
    )


def _inversion(results: Results) -> str:
    data = results["inversion"]
    return _section(
        "inversion",
        f"Each method inverts {len(data['images'])} pictures that the model has never seen, in S = {data['steps']} "
        "steps, and reconstructs them from the result in as many steps. Errors are for pixel values from 0 to 1. "
        f"Latents are shown with −3 as black and 3 as white, and differences are multiplied by {data['amplified']}. "
        "Flat areas of a picture give latents that are smoother than noise, which is a known limit of every "
        "deterministic inversion.",
        *(_method(k, one, data) for k, one in enumerate(data["methods"])),
        _curve(results),
    )


def _curve(results: Results) -> str:
    """PSNR against S: of this page if it has several S, or of stored tables of the model."""
    data = results["inversion"]
    if results["full"]:
        lines: list[Line] = [
            (one["label"], one["exact"], {c["steps"]: c["psnr"] for c in data["curve"] if c["method"] == one["method"]})
            for one in data["methods"]
        ]
        body = psnr_part(lines, f"MSE over all {len(data['images'])} pictures")
    else:
        lines, body = round_trip_lines(results)[0], round_trip_curve(results)
    if not body:
        return ""
    exact = [value for _, kind, points in lines for value in points.values() if kind and value is not None]
    smaller = min(exact, default=ROUNDING) >= ROUNDING
    below = ", and is smaller than the error of rounding a picture to 8 bits" if smaller else ""
    return (
        '<h3 class="later">Error against the number of steps</h3>'
        "<p>The approximate methods (dashed) need many steps. The exact methods (solid) do not: their remaining error "
        f"comes from the rounding of floating-point numbers{below}.</p>{body}"
    )


def _method(k: int, one: Results, data: Results) -> str:
    files, label = one["files"], one["label"]
    about = settings(
        f"S = {one['steps']}",
        escape(", ".join(f"{key} = {value:g}" for key, value in one["options"].items() if key in _SHOWN_OPTIONS)),
        f"{one['nfe']['invert']:g} + {one['nfe']['reconstruct']:g} network calls per picture",
        duration(one["seconds"]),
        escape(one["paper"]),
    )
    same = f"{one['same_png']} of {one['pictures']}"
    views = [
        ("original", data["originals"], "the real pictures"),
        ("latent", files["latent"], f"standard deviation {one['latent_std']:.2f}; that of noise is 1"),
        (
            "reconstruction",
            files["reconstruction"],
            f"{same} equal the original in 8 bits",
        ),
        ("difference", files["difference"], f"× {data['amplified']}; the largest is {small(one['max'])}"),
    ]
    figures = "".join(
        f"<figure>{image(file, f'{what}: {label}')}<figcaption><b>{what}</b> {text}</figcaption></figure>"
        for what, file, text in views
    )
    kind = "exact" if one["exact"] else "approximate"
    return f"""<div class="method">
<h3><span class="dot s{k}"></span>{escape(label)} <span class="set">{kind}</span></h3>
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
            f"MSE {small(one['mse_at_ends'])} at the real pictures",
        )
        caption = f"<figcaption>{text}{about}</figcaption>{command(one['command'])}"
        return f'<figure class="{kind}">{image(one["file"], text)}{caption}</figure>'

    return _section(
        "between",
        "Codes can be mixed. Every point on the arc between the DDIM latents of two real pictures (slerp) gives a "
        "picture. At the ends of an arc are the real pictures, reconstructed by an exact method.",
        figure("row", "From one real picture to another in eleven frames."),
        figure("chain", "A chain through four real pictures."),
        figure("corners", "Four real pictures in the corners, and mixtures of them between.", "square"),
    )


def _words(results: Results) -> str:
    one, model = results["words"], results["editor"]
    about = settings(
        f"<b>{escape(last_part(model['name']))}</b>, {model['parameters'] / 1e6:.1f} million weights",
        f"S = {one['steps']}, guidance {one['guidance']:g}",
        f"{one['nfe']:g} network calls per picture",
        duration(one["seconds"]),
    )

    def figure(file: str, prompts: list[str], what: str, line: str) -> str:
        under = f"<figcaption>{about}<p>{escape(' · '.join(prompts))}</p></figcaption>{command(line)}"
        return f"<figure>{image(file, what)}{under}</figure>"

    parts = []
    if one.get("known_file"):
        what = "samples for prompts of the training set"
        parts.append(figure(one["known_file"], one["known"], what, one["known_command"]))
        parts.append(
            "<p>The model was not trained on the following prompts. Each pair of rows shows real drawings, and below "
            "them the samples for their prompts. Some samples match their prompt, and some do not.</p>"
        )
    what = "real drawings, each above a sample for its prompt"
    parts.append(figure(one["file"], one["prompts"], what, one["command"]))
    return _section(
        "words",
        "A small Stable Diffusion model draws what a prompt names: a style, and a thing.",
        "".join(parts),
    )


def _edits(results: Results) -> str:
    figures = []
    for one in results["edits"]:
        about = settings(
            f"<b>{escape(one['method'])}</b>",
            f"S = {one['steps']}, guidance {one['guidance']:g}",
            f"reconstruction at {db(one['psnr'][0])} dB",
            f"{one['nfe']:g} network calls",
            duration(one["seconds"]),
        )
        picture = image(one["file"], f"source, reconstruction, edit and answer: {one['from']} → {one['to']}")
        figures.append(
            f'<figure class="strip"><h3>{escape(one["from"])} → {escape(one["to"])}</h3>'
            '<div class="heads"><span>real drawing</span><span>reconstruction</span><span><b>edit</b></span>'
            "<span>to compare</span></div>"
            f"{picture}<figcaption>{about}</figcaption>{command(one['command'])}</figure>"
        )
    return _section(
        "edits",
        "A new prompt changes a real drawing that the model was not trained on. The drawing is turned into noise with "
        "its own prompt, and the noise into a picture with the new one. The last picture of each row is a real drawing "
        "of the new prompt, to compare with.",
        *figures,
    )


def _methods(results: Results) -> str:
    figures = []
    for one in results["methods"]:
        near = ", ".join(db(value) for value in one["psnr"])
        about = settings(
            f"<b>{escape(one['label'])}</b>",
            f"S = {one['steps']}, guidance {one['guidance']:g}",
            f"reconstructions at {near} dB",
            f"{one['nfe']:g} network calls per picture",
            duration(one["seconds"]),
        )
        picture = image(one["file"], f"three edits by {one['label']}: source, reconstruction, edit, answer")
        figures.append(f"<figure>{picture}<figcaption>{about}</figcaption>{command(one['command'])}</figure>")
    return _section(
        "methods",
        "The same edits by other inversions, with and without attention control. The columns are those above: real "
        "drawing, reconstruction, edit, and a drawing to compare with. Plain DDIM inversion loses the source under "
        "guidance.",
        f'<div class="two">{"".join(figures)}</div>',
        leaderboard(results),
    )


def _next(results: Results, out: str) -> str:
    name = results["model"]["name"]
    model = "" if name == "fashion" else f" --model {quote(name)}"
    one, steps = results["inversion"]["images"][0], results["inversion"]["steps"]
    original = quote(f"{out}/originals/{one}.png")
    lines = [
        ("Edit in the browser, after <code>pip install 'ddim[studio]'</code>.", "ddim studio"),
        ("Draw sixteen pictures with another seed.", f"ddim sample --seed 42 --scale 4{model}"),
        (
            "Invert a real picture to its code. The command prints the error of the reconstruction.",
            f"ddim invert {original} --method bdia --steps {steps}{model}",
        ),
        (
            "Reconstruct the picture from its code, and compare it with the original.",
            f"ddim reconstruct {quote(f'{one}_bdia_S{steps}.code.safetensors')} --original {original}",
        ),
        ("Invert a folder of your own pictures, resized for the model.", f"ddim invert photos/*.png --resize{model}"),
        (
            "Sample from a pixel model on the Hugging Face hub in ten steps.",
            "ddim sample --model google/ddpm-cifar10-32 --steps 10",
        ),
        ("List every solver, inversion and spacing with its options.", "ddim methods"),
        (
            "Invert thousands of pictures, after <code>pip install 'ddim[batch]'</code>; a killed run goes on.",
            f"ddim batch invert --data photos --resize --out codes --model {quote(name)}",
        ),
        ("Train a model of your own, with a recipe of the repository.", "ddim train recipes/fashion.toml"),
    ]
    items = "".join(f"<li><p>{text}</p>{command(line)}</li>" for text, line in lines)
    return _section(
        "next",
        "Every file has its settings in its name and in its metadata. With <code>--json</code> a command prints them "
        "for programs to read.",
        f'<ol class="next">{items}</ol>',
    )


def _facts(results: Results) -> str:
    """The models, the machine and the time."""
    model, editor, machine = results["model"], results["editor"], results["machine"]
    facts = [("edits and prompts", *_model(editor))] if editor else []
    facts += [
        ("round trips and samples", *_model(model)),
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
    return f'<dl class="facts">{cells}</dl>'


def _footer(results: Results) -> str:
    machine, model = results["machine"], results["model"]
    spent = ", ".join(
        f"{title.lower()} {duration(results['seconds'][key])}"
        for key, title in TITLES.items()
        if results["seconds"].get(key)
    )
    jobs = "1 job" if machine["workers"] == 1 else f"{machine['workers']} jobs"
    licence = f" Model: {escape(model['licence'])}." if model.get("licence") else ""
    if last_part(model["name"]) == "fashion":
        licence += " Test pictures: Fashion-MNIST, © 2017 Zalando SE, MIT."
    if results.get("editor"):
        owners = "; ".join(dict.fromkeys(one["owner"].partition("; ")[0] for one in results["edits"] if one["owner"]))
        licence += f" Drawings, resized: {escape(owners)}." if owners else ""
    return (
        f"<footer>{_facts(results)}"
        f"<p>Made by ddim {escape(results['ddim'])} with Python {escape(machine['python'])} on "
        f"{escape(machine['system'])}, with {jobs} at a time. Time: {spent}. "
        f'All numbers are in <a href="results.json">results.json</a>.{licence}</p></footer>'
    )


def _to_longest(one: Results, longest: int) -> str:
    mse = one.get("mse_to_longest")
    return f"{db(decibels(mse))} dB to S\u00a0=\u00a0{longest}" if mse else ""


def _noise_name(name: str) -> str:
    return "σ̂" if name == "sigma-hat" else f"η = {name}"
