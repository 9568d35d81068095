"""The names of a world's Services, in the processes of its pods."""
