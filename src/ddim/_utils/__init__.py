"""What every part may use: errors as data, files that appear whole, libraries kept quiet."""
