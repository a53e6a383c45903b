"""Pure measurement: arrays in; numbers, tables and figures out. Nothing here knows a model or a dataset."""
