"""Files as damage or malice would leave them, through every reader: each is read or refused in one line, in bounds."""
