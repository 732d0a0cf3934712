"""Small documents of real tables: tables, forms, charts and covered words.

Their cells are from the tables of the package vega-datasets, cut to words of
at most five letters, at a size that a small tower can read; every question has
one right answer, which follows from what is drawn.
"""
