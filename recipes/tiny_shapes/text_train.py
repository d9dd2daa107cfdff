"""Stage 0: teach the text encoder the language before any clip is drawn.

Two readers, thrown away afterwards, name the colour, shape and motion of each object: learned queries that attend to the whole
caption, as the transformer's cross-attention will, and a linear map of each colour's and each shape's own embedding. The second
ties together what belongs together: cross-attention knows no places, so a word must carry its object itself. Cross-entropy,
AdamW. The teacher trains on these embeddings as they are. Three minutes on one CPU core.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.tiny_shapes import parallel
from recipes.tiny_shapes.common import Options, Run, options, parser, prepare, save_weights, table
from recipes.tiny_shapes.config import Sizes
from recipes.tiny_shapes.data import PARAPHRASES, SceneStream, tokens, vocabulary_size
from recipes.tiny_shapes.optim import schedule
from recipes.tiny_shapes.scene import COLORS, MOTIONS, SHAPES, Scene, held_out_scenes
from recipes.tiny_shapes.scoring import captions_for
from recipes.tiny_shapes.textnet import TextEncoder

BATCH = 64
LR = 2e-3
NAMES = (COLORS, SHAPES, MOTIONS)
NOTHING = 0  # class of every attribute of an object that is not there


class Readout(nn.Module):
    """Logits of colour, shape and motion: of two objects from a caption, and of one from each word that names it."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(2 * len(NAMES), s.text_dim) / s.text_dim**0.5)
        self.attend = nn.MultiheadAttention(s.text_dim, s.text_heads, batch_first=True)
        self.heads, self.word_heads = (
            nn.ModuleList([nn.Linear(s.text_dim, len(names) + 1) for names in NAMES]) for _ in range(2)
        )

    def forward(self, embeddings: Tensor) -> list[Tensor]:
        """Embeddings [B, L, D] to three tensors [B, 2, classes], objects in the order of the caption."""
        queries = self.queries.expand(len(embeddings), -1, -1)
        found = self.attend(queries, embeddings, embeddings, need_weights=False)[0].unflatten(1, (2, len(NAMES)))
        return [head(found[:, :, i]) for i, head in enumerate(self.heads)]


def caption_loss(readout: Readout, embeddings: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of what the queries read; embeddings [B, L, D], targets [B, 2, 3]."""
    logits = readout(embeddings)
    return torch.stack([F.cross_entropy(v.flatten(0, 1), targets[:, :, i].flatten()) for i, v in enumerate(logits)]).sum()


def word_loss(readout: Readout, embeddings: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of what colour words and shape words say of their object; ids [B, L]."""
    present = targets.flatten(0, 1)[targets[:, :, 0].flatten() != NOTHING]
    losses = []
    for names in (COLORS, SHAPES):  # either word occurs once an object, in the order of the objects
        words = torch.from_numpy(tokens([" ".join(names)], len(names))).to(ids.device)
        named = embeddings[torch.isin(ids, words)]
        losses += [F.cross_entropy(head(named), present[:, i]) for i, head in enumerate(readout.word_heads)]
    return torch.stack(losses).sum()


def labels(scenes: list[Scene]) -> Tensor:
    """Classes [N, 2, 3] of colour, shape and motion, objects in the order of the caption."""
    rows = torch.full((len(scenes), 2, len(NAMES)), NOTHING)
    for row, scene in zip(rows, scenes, strict=True):
        for i, o in enumerate(scene.objects):
            row[i] = torch.tensor([1 + names.index(v) for names, v in zip(NAMES, (o.color, o.shape, o.motion), strict=True)])
    return rows


@torch.no_grad()
def accuracy(text: TextEncoder, readout: Readout, s: Sizes, count: int) -> float:
    """Share of held-out captions of which every attribute is read right."""
    scenes = held_out_scenes(count, seed=5)
    device = readout.queries.device
    ids = torch.from_numpy(tokens(captions_for(scenes, 6), s.text_len)).to(device)
    named = torch.stack([logits.argmax(-1) for logits in readout(text(ids))], -1)
    return float((named.cpu() == labels(scenes)).all((1, 2)).float().mean())


def train(o: Options) -> dict[str, Any]:
    device = prepare(o)
    run, s = Run("text", o), o.sizes
    text, readout = TextEncoder(s, vocabulary_size()).to(device), Readout(s).to(device)
    both = nn.ModuleDict({"text": text, "readout": readout})
    if run.saved:
        both.load_state_dict(run.saved["model"])
    opt = torch.optim.AdamW(both.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=1e-2)
    batch = o.batch or o.pick(BATCH, 8)
    stream = SceneStream(o.seed + 31, s.text_len, -(-batch // PARAPHRASES))
    for done in run.steps(reserve=2):
        scenes, ids, _ = stream.next()
        targets = labels(scenes).repeat_interleave(PARAPHRASES, 0).to(device)
        used = int((ids != 0).any((0, 1)).sum())  # padding is half of a batch
        words = torch.from_numpy(ids[..., :used]).flatten(0, 1).to(device)
        embeddings = text(words)
        whole, each = caption_loss(readout, embeddings, targets), word_loss(readout, embeddings, words, targets)
        loss = whole + each
        opt.param_groups[0]["lr"] = LR * schedule(run.step, done, warmup=50, hold=0.6)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        opt.step()
        run.log(10, captions=whole.detach(), words=each.detach())
    parallel.broadcast(both.state_dict().values())  # every process trained alone; the first one's weights stay
    run.save(model=both.state_dict())
    save_weights(run.folder, "text", text.state_dict(), torch.float32)
    result = {"read": accuracy(text, readout, s, o.pick(500, 8)), "steps": run.step, "seconds": run.elapsed,
              "apart": parallel.disagreement(both.parameters())}  # fmt: skip
    run.write("text.json", result)
    run.plot("text encoder")
    table("text encoder", [("steps", str(run.step)), ("held-out captions read", f"{result['read']:.3f}")])
    return result


if __name__ == "__main__":
    train(options(parser(__doc__, 0.5).parse_args()))
