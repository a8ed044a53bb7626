"""A run on a CUDA device: ``bash ci/gpu.sh`` runs it in stages, ``python -m ci.gpu PART`` is a part of it."""
