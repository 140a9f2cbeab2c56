"""The driver process. It never imports torch.

The driver starts Ray and a supervisor. The supervisor's gangs pull shots from a queue. ``policy`` and ``faults`` decide
what follows a failure.
"""
