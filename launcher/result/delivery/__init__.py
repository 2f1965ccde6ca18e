"""Takes a published folder to where it was asked to go; the folder itself is never touched."""
