"""Page tables: their formats, walks through them, and memory as a guest's processor sees it."""
