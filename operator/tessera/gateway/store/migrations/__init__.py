"""Revisions of the schema. A revision only adds, so that gateways of the last version go on."""
