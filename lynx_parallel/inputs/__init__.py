"""Reads what to render into frozen specs. Imports neither torch nor Ray.

- The manifest: ``load``, ``entries`` (its keys), ``expand`` (to shots), ``overrides`` (``--set``, ``--only``).
- The pipeline file: ``pipeline`` (its fields), ``weight_names`` (its files), ``pipeline_files`` (reads it).
- The base: ``base_configs`` (what it may be), ``base_parts`` (what it has).
- Tables: ``sheet`` and ``excel`` (cells), ``table`` (shots), ``people`` (subjects).
- Mistakes and warnings: ``problems``, ``validate``, ``yaml_lines``, ``aliases``, ``notices``, ``lost_text``.
- Types that other rooms share: ``cluster``, ``layout``, ``guidance``, ``memory``, ``weight_files``, ``model_config``.
"""
