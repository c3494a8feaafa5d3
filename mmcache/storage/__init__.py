"""Files: building, publishing and reading them. Every file-system call goes through `fs`."""
