# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Key's face in a terminal window: its screen and its four buttons. The only file that knows Textual."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button as PushButton
from textual.widgets import Static

from wallet.trusted_key.control import ControlClient
from wallet.trusted_key.screen import COLUMNS, LINES, Button, Frame, Showing

_LABELS = {Button.CANCEL: "✕ cancel", Button.UP: "▲ up", Button.DOWN: "▼ down", Button.OK: "● ok"}


class KeyFace(App[None]):
    """Shows what the Key shows, and presses its buttons: enter, escape and the arrows, or a click."""

    TITLE = "TapLab Trusted Key"
    ENABLE_COMMAND_PALETTE = False
    CSS = f"""
    Screen {{ align: center middle; }}
    #key {{ width: 56; height: auto; border: round $primary; padding: 1 2; }}
    #screen {{ width: {COLUMNS + 4}; height: {LINES + 2}; border: heavy $secondary; padding: 0 1; margin: 0 13 1 13; }}
    #screen.question {{ border: heavy $warning; }}
    PushButton {{ min-width: 11; width: 1fr; margin: 0; }}
    Horizontal {{ height: 3; }}
    #hint {{ color: $text-muted; margin-top: 1; text-align: center; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "press('ok')", "ok", priority=True),
        Binding("escape", "press('cancel')", "cancel", priority=True),
        Binding("up", "press('up')", "up", priority=True),
        Binding("down", "press('down')", "down", priority=True),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, folder: Path) -> None:
        """Look at the Key that serves from `folder`; LinkUnavailableError when none does."""
        super().__init__()
        self._watcher = ControlClient(folder)
        self._presser = ControlClient(folder)
        self.frame = self._presser.frame()
        self.key_has_ended = False

    def compose(self) -> ComposeResult:
        """Lay the Key out."""
        with Vertical(id="key"):
            yield Static(id="screen", markup=False)
            with Horizontal():
                for button, label in _LABELS.items():
                    made = PushButton(label, id=button.value)
                    made.can_focus = False
                    yield made
            yield Static("enter, escape, ↑, ↓ press the buttons; q leaves the Key to itself", id="hint")

    def on_mount(self) -> None:
        """Show the first frame and watch for the next ones."""
        self._draw(self.frame)
        self.run_worker(self._watch, thread=True, exit_on_error=False)

    def _watch(self) -> None:
        for frame in self._watcher.watch():
            self.call_from_thread(self._draw, frame)
        if self.is_running:
            self.key_has_ended = True
            self.call_from_thread(self.exit)

    def _draw(self, frame: Frame) -> None:
        self.frame = frame
        shown = self.query_one("#screen", Static)
        shown.update("\n".join(frame.lines))
        shown.set_class(frame.showing is Showing.QUESTION, "question")

    def on_button_pressed(self, event: PushButton.Pressed) -> None:
        """Press what was clicked."""
        self.action_press(event.button.id or "")

    def action_press(self, button: str) -> None:
        """Press a button, in answer to what is seen and to nothing newer."""
        self._presser.press(Button(button), self.frame.number)

    def on_unmount(self) -> None:
        """Hang up."""
        self._watcher.close()
        self._presser.close()
