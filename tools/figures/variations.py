"""One picture of every variation of the embedded suite, side by side.

.venv/bin/python -c "from tools.figures.variations import *; draw_sheet('docs/pictures/variations.png')"
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dtvla.sim.env import SimEnv
from dtvla.sim.perturbations.perturbation import INSTRUCTION, NAMES, USUAL, Variation

TILE_PX = 200
LABEL_PX = 24
COLUMNS = 4
GAP_PX = 8
SEED = 10_004
PAPER, INK, FAINT = (255, 255, 255), (27, 31, 39), (101, 109, 123)
SEEN_PX = 128  # as the shipped policy sees
WRIST = "robot"  # where the change shows best from the wrist


def draw_sheet(path: str | Path, strength: float = USUAL) -> None:
    """Draws the first picture of one episode in every varied world, and saves all as `path`."""
    tiles: list[tuple[Variation | None, str]]
    tiles = [(Variation(name, strength), "agentview") for name in NAMES if name != WRIST]
    tiles = [(None, "agentview"), *tiles, (None, "wrist"), (Variation(WRIST, strength), "wrist")]
    env = SimEnv("embedded", 0, image_size=SEEN_PX)
    label, text = ImageFont.load_default(14), ImageFont.load_default(16)
    rows = -(-len(tiles) // COLUMNS)
    size = (COLUMNS * (TILE_PX + GAP_PX) + GAP_PX, rows * (TILE_PX + LABEL_PX + GAP_PX) + GAP_PX)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (variation, camera) in enumerate(tiles):
        env.vary(variation)
        images = env.reset(SEED).images
        name = "" if variation is None else variation.name
        left = GAP_PX + number % COLUMNS * (TILE_PX + GAP_PX)
        top = GAP_PX + number // COLUMNS * (TILE_PX + LABEL_PX + GAP_PX)
        if name == INSTRUCTION:
            words = "\n".join(textwrap.wrap(env.instruction, 22))
            draw.rectangle((left, top, left + TILE_PX - 1, top + TILE_PX - 1), outline=FAINT)
            draw.multiline_text((left + 14, top + 60), words, INK, text, spacing=6)
        else:
            picture = Image.fromarray(images[camera])
            sheet.paste(picture.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC), (left, top))
        words = f"own world, {camera}" if variation is None else str(variation)
        draw.text((left + 2, top + TILE_PX + 3), words, INK, label)
    env.close()
    sheet.save(path, optimize=True)
