"""Networks trained elsewhere: their files, and how they are built."""
