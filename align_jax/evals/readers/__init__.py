"""Benchmarks in the layouts their authors publish, one file a set or family.

  benchmark    what all share        each other file: one layout, with the
                                     upstream file that defines it
"""
