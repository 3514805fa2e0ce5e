"""What the run needs: memory, time, disk, and its Slurm job."""
