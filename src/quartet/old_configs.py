"""Configs of older versions, brought up to date when a run is opened: moved keys, renamed parts. Imports no torch.

Whoever moves a key or a part that a config names adds a line here: runs that were made before must open for ever.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from quartet.typed import PROJECT

# keys of older configs, and where they are now
MOVED = {
    "model.accepts": "pairing.accepts",
    "model.window_order": "pairing.window_order",
    "data.provides": "pairing.provides",
    "task.predicts": "pairing.predicts",
    "data.recipe.max_steps": "length.max_steps",
    "data.recipe.max_epochs": "length.max_epochs",
    "data.recipe.val_check_interval": "length.val_check_interval",
    "data.recipe.prompt": "prompt",
    "data.recipe.dropout": "model.dropout",
    "data.recipe.token_dropout": "model.token_dropout",
    "data.recipe.label_smoothing": "task.label_smoothing",
    "data.recipe.muon_lr": "optimizer.lr",
    "model.init_from": "finetune.init_from",
    "model.freeze": "finetune.freeze",
    "model.backbone_lr": "finetune.backbone_lr",
    "trainer.max_restarts": "workers.max_restarts",
    "trainer.rendezvous": "workers.rendezvous",
}

# keys of older configs that decide nothing any more, and why
REMOVED = {"data.in_memory_mb": "a text of any size is mapped from the cache"}

# parts that older configs name, and where they are now: a module, or one thing in it
RENAMED: dict[str, str] = {
    "quartet.sharding": "quartet.engine.fsdp",
    "quartet.callbacks.checkpoint": "quartet.engine.checkpoint",
    "quartet.callbacks.pruning": "quartet.sweeps.pruning",
    "quartet.callbacks.dashboards.Figures": "quartet.callbacks.figures.Figures",
    "quartet.callbacks.dashboards.TextSamples": "quartet.callbacks.samples.TextSamples",
    "quartet.data.tables": "quartet.data.table.tabular",
    "quartet.data.table_files": "quartet.data.table.own_table",
    "quartet.data.table.tables": "quartet.data.table.tabular",
    "quartet.data.table.files": "quartet.data.table.own_table",
    "quartet.data.labelled_text": "quartet.data.text.classification",
    "quartet.data.text": "quartet.data.text.language_modeling",
    "quartet.data.sources": "quartet.data.text.sources",
    "quartet.data.augment": "quartet.data.image.augment",
    "quartet.data.image_files": "quartet.data.image.images",
    "quartet.data.image_sets": "quartet.data.image.sets",
    "quartet.data.images": "quartet.data.image.images",
    "quartet.data.images.Digits": "quartet.data.image.sets.Digits",
}

ADDED = ("length", "prompt", "finetune", "workers", "pairing")  # nodes that older configs do not have


def upgrade(config: DictConfig) -> DictConfig:
    """Move or remove keys of an older config, in place, and add the nodes that it does not have."""
    with open_dict(config):
        # nodes that came later have the values of today's defaults, which change nothing
        if missing := [key for key in ADDED if key not in config]:
            defaults: Any = OmegaConf.load(PROJECT / "conf" / "train.yaml")
            config.update({key: defaults[key] for key in missing})
        for old, new in MOVED.items():
            group, _, name = old.rpartition(".")
            node = OmegaConf.select(config, group)
            if not isinstance(node, DictConfig) or name not in node:
                continue
            value = node.pop(name)
            # most of a recipe had reached its place by a reference, which the config of a run has resolved
            copied = old.startswith("data.recipe") and new.partition(".")[0] not in ADDED
            if value is not None and not copied:
                OmegaConf.update(config, new, value, force_add=True)
        if isinstance(config.get("data"), DictConfig):
            for key in ("data.recipe", *REMOVED):
                config.data.pop(key.removeprefix("data."), None)
        _rename_targets(config)
    return config


def _rename_targets(node: Any) -> None:
    """Replace the `_target_`s of older configs, wherever they stand."""
    for key in list(node):
        value = node._get_node(key)
        if isinstance(value, DictConfig) and value:
            _rename_targets(value)
        elif key == "_target_":
            module, dot, name = str(value).rpartition(".")
            node[key] = RENAMED.get(str(value)) or f"{RENAMED.get(module, module)}{dot}{name}"
