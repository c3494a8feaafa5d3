"""What joins mmcache to other software: each module needs the extra of its name, and nothing here imports it."""
