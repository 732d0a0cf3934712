"""What a run will take, before any device is booked.

  chips      one table of chip facts, with sources
  topology   a topology's name -> its devices, here or not
  cost       operations and bytes of a model by its own declaration
  memory     bytes a device by the sizes alone, without compiling
  hlo        an optimised program, read back: loops, FLOPs, collectives
  bounds     compute, memory and interconnect -> the ceiling on MFU
  stage      all of it for one stage of a config
  goals      what every recipe at scale must meet
  report     what is printed

Nothing here makes an array.
"""
