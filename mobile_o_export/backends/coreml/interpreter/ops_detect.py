"""What ends detectors and classifiers (defs/iOS15/tensor_operation.py, defs/iOS15/classify.py)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mobile_o_export.backends.coreml.interpreter.registry import Call, Labels, Result, implements


@implements(
    "non_maximum_suppression",
    "boxes scores iou_threshold max_boxes",
    "score_threshold per_class_suppression",
)
def _non_maximum_suppression(call: Call) -> Result:
    """Up to iOS 16 boxes [n, B, 4] and a count as fourth result, from iOS 17 [n, 4, B] and three results.

    The rule is that of the reference in coremltools' own tests: a box counts by its best class; where none
    is left, the best box is given all the same. What is padded has the index -1.
    """
    boxes, scores, most = call.tensor("boxes"), call.tensor("scores"), call.integer("max_boxes", 1)
    boxes_last = len(call.outputs) == 3
    if boxes_last:
        boxes, scores = boxes.mT, scores.mT
    chosen = [_chosen(call, *pair)[:most] for pair in zip(boxes, scores, strict=True)]
    indices = torch.full((len(boxes), most), -1)
    kept_boxes = torch.zeros(len(boxes), most, 4)
    kept_scores = torch.zeros(len(boxes), most, scores.shape[-1])
    for place, found in enumerate(chosen):
        indices[place, : len(found)] = found
        kept_boxes[place, : len(found)] = boxes[place, found]
        kept_scores[place, : len(found)] = scores[place, found]
    if boxes_last:
        return kept_boxes.mT, kept_scores.mT, indices
    return kept_boxes, kept_scores, indices, torch.tensor([len(found) for found in chosen])


def _chosen(call: Call, boxes: Tensor, scores: Tensor) -> Tensor:
    """Places of the boxes [B, 4] that stay, the best first."""
    best, classes = scores.max(-1)
    order = torch.argsort(best, descending=True, stable=True)
    candidates = order[best[order] > call.number("score_threshold", -math.inf)]
    within, threshold = call.flag("per_class_suppression", False), call.number("iou_threshold", 0.0)
    overlapping = _overlaps(boxes) > threshold
    if within:
        overlapping &= classes[:, None] == classes
    suppressed = torch.zeros(len(boxes), dtype=torch.bool)
    kept = []
    for place in candidates.tolist():
        if not suppressed[place]:
            kept.append(place)
            suppressed |= overlapping[place]
    return torch.tensor(kept) if kept else order[:1]


def _overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of each pair of boxes [B, 4] of centre, width and height; of nothing, zero."""
    centre, size = boxes[:, :2], boxes[:, 2:]
    low, high = centre - size / 2, centre + size / 2
    shared = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0).prod(-1)
    areas = size.prod(-1)
    union = areas[:, None] + areas - shared
    return torch.where(shared > 0, shared / union, 0)


@implements("classify", "probabilities classes", other_results=True)
def _classify(call: Call) -> Result:
    """The most probable class, the first where several are, and the probability of each."""
    probabilities, classes = call.tensor("probabilities").flatten(), call.labels("classes")
    best = classes[int(probabilities.argmax())]
    return Labels((best,)), Labels(classes, tuple(probabilities.tolist()))
