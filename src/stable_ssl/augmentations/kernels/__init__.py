"""The loops behind the operations on the CPU, compiled by numba: uint8 in, uint8 out, rounded where torchvision rounds.

They take images as planes (batch, channels, height, width). Importing a file of this folder imports numba, which takes
seconds, so operations do that when they make their first view. No loop starts threads, so worker processes may be
forked. All loops release Python's global lock, so other threads go on.

numba keeps on disk what it compiled. It compiles a loop again only if the loop's own file has changed. So a loop and
whatever it calls stand in one file. Only `compiling` and `vectors` are shared: whoever changes them must change every
file that imports them too.
"""
