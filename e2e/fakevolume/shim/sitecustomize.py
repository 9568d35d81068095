"""Lets a process, as it starts, hear of the volumes of a world that refuse writes."""

from fakevolume.faulty_volume import marked_error, refuse_writes

refuse_writes(marked_error)
