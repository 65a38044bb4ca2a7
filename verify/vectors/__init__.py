"""Portable test vectors: small problems with the oracle's answers, in JSON, for implementations in any language.

``v1`` and ``v2`` hold the files of the two versions, each with its README. The plans (`plan_v1`, `plan_v2`) determine
the cases, `making` answers them with the oracle, `folder` writes and reads the files, and `running` tries them on a
candidate.
"""
