"""What the page shows: each file one part of it. Views ask the editor and never compute images."""
