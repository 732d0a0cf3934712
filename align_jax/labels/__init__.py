"""Labels: which words the patches of an image show, said by a CLIP.

SEA (2408.11813, section 3.1) labels every patch with the words nearest to it
in the joint space of a vision tower and its text tower. `job.py` makes a
folder of labels, `store.py` reads it, `data/labelled.py` hands them to
training.
"""
