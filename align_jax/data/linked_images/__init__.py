"""An open stand-in for MmLINK: sets of images that share exactly one thing.

SAM (2408.12867) was trained on MmLINK, 69,000 sets that were never published.
This is not that data: its kinds follow what the paper's page shows, its images
are drawn from icons, and no diffusion model or ChatGPT had a part in it.

  icons.py   icons with their names, drawn in any size and colour
  scenes.py  canvases, backgrounds, cards
  kinds.py   one function a kind of sample
  build.py   samples -> array_record shards, and a contact sheet
  source.py  the shards as a data source
"""
