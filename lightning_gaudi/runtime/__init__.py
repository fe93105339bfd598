"""The only owner of the Gaudi software, of its environment variables and of the emulator."""
