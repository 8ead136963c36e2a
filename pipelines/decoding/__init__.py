"""Codes back to sound: the decode engine whose streams share steps, the actor around it, and the decode job."""
