"""The servers and frameworks that the streams are served by."""
