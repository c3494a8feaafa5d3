"""Ready-made schemas for particular domains; import the one you need, e.g. `mmcache.presets.patterns`."""
