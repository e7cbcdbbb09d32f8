"""What all tests share: hypothesis without deadlines, since a busy machine is no defect."""

from hypothesis import settings

settings.register_profile("lockstep", deadline=None)
settings.load_profile("lockstep")
