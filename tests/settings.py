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
                mine = {flag: flags.pop(flag) for flag in _flags_of(group) & flags.keys()}
                inner = {field.name: getattr(group, field.name) for field in fields(group)}
                if any(map(is_dataclass, inner.values())):
                    values[name] = _filled(type(group), inner, mine)
                else:
                    values[name] = replace(group, **mine)
        return kind(**values | flags)


def _flags_of(group) -> set[str]:
    """Names of the flags of a group and of the groups in it."""
    held = {field.name: getattr(group, field.name) for field in fields(group)}
    groups = [value for value in held.values() if is_dataclass(value)]
    return {name for name, value in held.items() if value not in groups}.union(*map(_flags_of, groups))
