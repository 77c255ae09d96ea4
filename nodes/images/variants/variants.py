"""Caption Variants: edits the captions of a training set, and says how they are varied while it is trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ....training.caption_variants import (
    MOST_VARIANTS,
    CaptionVariants,
    leading_tags,
    parts_of,
    plain_tag,
    split_tags,
    vary,
)
from ....training.captions import WORD, says
from ....training.errors import InputError
from ....training.images import ImageSet, TrainingImage
from ....training.randomness import generator
from ..fingerprint import fingerprint
from ..quality import counted, listed

ARROW = "->"
SHOWN_PICTURES, SHOWN_VARIANTS = 4, 8  # in the preview
LARGEST_KEEP = 1000  # tags


@dataclass(frozen=True)
class VariantsRequest:
    r"""The inputs of the node.

    separator: "\n" in it is a line break. keep_tags: tags, between separators or on lines of their own. variants: how
    many of each caption, 0 makes a new one at each draw. prepend, append: tags, between separators. replace: see
    `replacements`. The others: see `CaptionVariants`. Raises `InputError` for values out of range.
    """

    separator: str = ","
    shuffle: bool = True
    keep_first: int = 1
    drop_tags: float = 0.0
    keep_tags: str = ""
    variants: int = 8
    prepend: str = ""
    append: str = ""
    replace: str = ""

    def __post_init__(self) -> None:
        if not self.separator:
            raise InputError("separator is empty; give what stands between two tags, such as ,")
        for name, value, most in (
            ("keep_first", self.keep_first, LARGEST_KEEP),
            ("variants", self.variants, MOST_VARIANTS),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise InputError(f"{name} is {value!r}; give a whole number from 0 to {most}")
        if not 0 <= self.drop_tags <= 1:
            raise InputError(f"drop_tags is {self.drop_tags}; give a probability from 0 to 1")

    def rule(self, syntax: str) -> CaptionVariants:
        """How captions of `syntax` are varied."""
        separator = self.separator.replace("\\n", "\n")

        def tags(text: str) -> tuple[str, ...]:
            return tuple(split_tags(text, separator, syntax))

        return CaptionVariants(
            separator,
            self.shuffle,
            self.keep_first,
            float(self.drop_tags),
            tuple(tag for line in self.keep_tags.splitlines() for tag in tags(line)),
            self.variants,
            tags(self.prepend),
            tags(self.append),
        )


def replacements(text: str) -> list[tuple[str, str]]:
    """[(old, new)] of rules, one a line: "old -> new"; an empty `new` takes the text out.

    A side in double quotes is taken with its blanks: `"_" -> " "`. Empty lines do not count. Raises `InputError` that
    names every line without an arrow or without an old text.
    """
    rules, wrong = list[tuple[str, str]](), list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        old, arrow, new = line.partition(ARROW)
        if not arrow or not _unquoted(old):
            wrong.append(f"line {number} is {line.strip()!r}")
        else:
            rules.append((_unquoted(old), _unquoted(new)))
    if wrong:
        raise InputError(f"replace takes one rule a line, old {ARROW} new; " + "; ".join(wrong))
    return rules


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def replaced(text: str, rules: Sequence[tuple[str, str]]) -> str:
    """The text with every `old` replaced, one rule after the other.

    Plain text, in any case, and whole words only where `old` begins or ends with a letter or digit: "cat" is not in
    "catalogue", "_" is anywhere.
    """
    for old, new in rules:
        before = r"(?<![^\W_])" if old[0].isalnum() else ""
        after = r"(?![^\W_])" if old[-1].isalnum() else ""
        text = re.sub(before + re.escape(old) + after, lambda _, new=new: new, text, flags=re.IGNORECASE)
    return text


def with_variants(images: ImageSet, request: VariantsRequest) -> tuple[ImageSet, str]:
    """(the set with its captions edited and varied as the request says, the preview).

    The first caption stays that which validation takes. Raises `InputError` for a rule of `replace` that cannot be
    read or that takes a trigger out, and for captions that a node before varies too.
    """
    rules = replacements(request.replace)
    items = [_item(item, request, rules) for item in images.items]
    changed = ImageSet(tuple(items), images.trigger, notes=images.notes)
    summary = _summary(images, changed, request, rules)
    pairs = zip(items, images.items, strict=True)
    same = all(new.captions == old.captions and new.variants == old.variants for new, old in pairs)
    digest = images.fingerprint if same else fingerprint(items)
    shown = [_shown(items[own[0]]) for own in changed.copies()[:SHOWN_PICTURES]]
    return replace(changed, fingerprint=digest), "\n\n".join(["\n".join(summary), *shown])


def _item(item: TrainingImage, request: VariantsRequest, rules: Sequence[tuple[str, str]]) -> TrainingImage:
    """The item with its captions edited, and with the rule by which they vary."""
    rule = request.rule(item.caption_syntax)
    captions = [_edited(caption, item, rule, rules) for caption in item.captions]
    before = item.variants
    if before is not None:
        if rule.varies:
            raise InputError(
                f"{item.path!r} comes from another Caption Variants node, which varies its captions too; set shuffle "
                "off and drop_tags 0 in one of the two: what both prepend, append and replace stays"
            )
        if rule.separator != before.separator:
            raise InputError(
                f"separator is {rule.separator!r}, and that of the Caption Variants node before is "
                f"{before.separator!r}; make them equal"
            )
        prepended, appended, kept = (
            tuple(split_tags(replaced(rule.join(tags), rules), rule.separator, item.caption_syntax))
            for tags in (before.prepended, before.appended, before.keep_tags)
        )
        rule = replace(
            before,
            prepended=rule.prepended + prepended,
            appended=appended + rule.appended,
            keep_tags=before.keep_tags + kept,
        )
    return replace(
        item,
        caption=captions[0],
        more_captions=tuple(captions[1:]),
        variants=rule if rule.varies else None,
    )


def _edited(caption: str, item: TrainingImage, rule: CaptionVariants, rules: Sequence[tuple[str, str]]) -> str:
    """A caption with texts replaced, prepended (behind the trigger, where that is first) and appended."""
    syntax, text = item.caption_syntax, replaced(caption, rules)
    for word in (item.trigger, WORD):
        if word and says(caption, word) and not says(text, word):
            raise InputError(
                f"replace takes the trigger {word!r} out of the caption {caption[:60]!r} of {item.path!r}; change the "
                "rule, or give the node that reads the pictures another trigger"
            )
    if text != caption or rule.prepended or rule.appended:
        tags = split_tags(text, rule.separator, syntax)
        first = leading_tags(tags, item.trigger, rule, syntax)
        text = rule.join([*tags[:first], *rule.prepended, *tags[first:], *rule.appended])
    return text


def _summary(
    before: ImageSet, images: ImageSet, request: VariantsRequest, rules: Sequence[tuple[str, str]]
) -> list[str]:
    """The first lines of the preview: how many prompts a training encodes, and what the request does not do."""
    items = [images.items[own[0]] for own in images.copies()]
    texts = {caption for item in items for caption in item.captions}
    lines = [_count(items, len(texts)), *_few(items, request), *_whole_sentences(items)]
    unused = [
        f"{old} {ARROW} {new}"
        for number, (old, new) in enumerate(rules)
        if not any(
            replaced(text, rules[: number + 1]) != replaced(text, rules[:number])
            for item in before.items
            for text in item.captions
        )
    ]
    if unused:
        lines.append(f"Replaced nothing: {listed(unused)}; no caption holds it.")
    present = {
        plain_tag(tag)
        for item in items
        for caption in item.captions
        for tag in split_tags(caption, request.rule(item.caption_syntax).separator, item.caption_syntax)
    }
    never = [tag for tag in request.rule(items[0].caption_syntax).keep_tags if plain_tag(tag) not in present]
    if never:
        lines.append(f"In keep_tags but no tag of any caption: {listed(never)}.")
    return lines


def _count(items: Sequence[TrainingImage], captions: int) -> str:
    """How many prompts a training on `items` encodes. captions: the number of different captions."""
    rules = {item.variants for item in items}
    count = f"{counted(len(items), 'picture')} with {counted(captions, 'different caption')}"
    if rules == {None}:
        return f"{count}. They are not varied: shuffle is off and drop_tags 0, or variants is 1, the caption itself."
    if any(rule is not None and rule.at_each_draw for rule in rules):
        return (
            f"{count}. A new variant is made at each draw: for Train LoRA with train_text_encoder, and for Train "
            "Textual Inversion with the template captions."
        )
    prompts = {prompt for item in items for prompt in item.prompts}
    return (
        f"{count}: {counted(len(prompts), 'prompt')} to encode, once, before the first step. The first variant is the "
        "caption itself; held-out pictures are scored with it."
    )


def _few(items: Sequence[TrainingImage], request: VariantsRequest) -> list[str]:
    """Pictures whose captions have nothing to vary, or fewer variants than asked for."""
    varied = [item for item in items if item.variants is not None and not item.variants.at_each_draw]
    counts = [(item, len(set(item.texts)) / len(item.captions)) for item in varied]
    same = [item.path for item, count in counts if count <= 1]
    few = [item.path for item, count in counts if 1 < count < request.variants and not request.drop_tags]
    lines = list[str]()
    if same:
        lines.append(
            f"Nothing to vary: {listed(same)}; at most one tag is free there. Is the separator {request.separator!r} "
            "right, keep_first low enough?"
        )
    if few:
        lines.append(f"Fewer than {request.variants} different variants: {listed(few)}; the tags allow no more.")
    return lines


def _whole_sentences(items: Sequence[TrainingImage]) -> list[str]:
    """Pictures whose captions end in sentences, which are kept as they are."""
    found = [
        item.path
        for item in items
        if item.variants is not None
        and any(
            parts_of(caption, item.variants, item.trigger, item.caption_syntax).sentence for caption in item.captions
        )
    ]
    if not found:
        return []
    return [
        f"Sentences are kept whole, at the end: {listed(found)}. To shuffle the sentences themselves, give the "
        "separator '. '."
    ]


def _shown(item: TrainingImage) -> str:
    """A picture's name and its first variants, one a line."""
    texts = list(dict.fromkeys(item.texts))
    rule = item.variants
    if rule is not None and rule.at_each_draw:
        draws = [generator(0, "caption preview", number) for number in range(SHOWN_VARIANTS - 1)]
        texts += [vary(item.caption, rule, item.trigger, item.caption_syntax, draw) for draw in draws]
    more = len(texts) - SHOWN_VARIANTS
    lines = [f"  {number}. {text or '(empty)'}" for number, text in enumerate(texts[:SHOWN_VARIANTS], 1)]
    return "\n".join([item.path, *lines, *([f"  and {more} more"] if more > 0 else [])])
