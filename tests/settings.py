"""Configs of scripts by flat keywords, as their flags are typed, wherever in the groups of a Config a flag stands."""

from dataclasses import fields, is_dataclass, replace

from analysis import command


def configure(script, **flags):
    """The Config of a script (a module) with some flags set; the others keep the script's defaults.

    Ends as the command line does for a wrong value: one sentence, SystemExit(2).
    """
    defaults = {field.name: field.default for field in fields(script.Config) if is_dataclass(field.default)}
    return _filled(script.Config, defaults, flags)


def changed(config, **flags):
    """The same config with other values of some flags; ends as `configure` does."""
    return _filled(type(config), {field.name: getattr(config, field.name) for field in fields(config)}, flags)


def _filled(kind: type, values: dict, flags: dict):
    values, flags = dict(values), dict(flags)
    with command.setting_up():
        for name, group in values.items():
            if is_dataclass(group):
                mine = {field.name for field in fields(group)} & flags.keys()
                values[name] = replace(group, **{flag: flags.pop(flag) for flag in mine})
        return kind(**values | flags)
