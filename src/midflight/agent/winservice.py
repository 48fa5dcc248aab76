"""The agent as a service of Windows, through ctypes (Microsoft's API reference, "Service Functions"): its entry point,
what the service control manager wants to hear, installation with recovery actions. Loads on every system; works on
Windows alone.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from ctypes import c_int32, c_uint32, c_void_p, c_wchar_p
from functools import cache
from typing import Any

from midflight.errors import MidflightError

NAME, TITLE = "Midflight", "Midflight agent"
DESCRIPTION = "Keeps the programs of this machine patched with signed hotpatches while they run."
_OWN_PROCESS, _AUTO_START, _ERROR_NORMAL = 0x10, 2, 1
_STOPPED, _START_PENDING, _STOP_PENDING, _RUNNING = 1, 2, 3, 4
_ACCEPT_STOP, _ACCEPT_SHUTDOWN, _ACCEPT_PRESHUTDOWN = 0x1, 0x4, 0x100
_CONTROL_STOP, _CONTROL_INTERROGATE, _CONTROL_SHUTDOWN, _CONTROL_PRESHUTDOWN = 1, 4, 5, 0xF
_NOT_IMPLEMENTED, _SPECIFIC_ERROR = 120, 1066
_NOT_A_SERVICE, _EXISTS, _NO_SUCH, _NOT_ACTIVE, _MARKED = 1063, 1073, 1060, 1062, 1072
_ALL_ACCESS, _MANAGER_ALL = 0xF01FF, 0xF003F
_CONFIG_DESCRIPTION, _CONFIG_FAILURE, _CONFIG_FAILURE_FLAG = 1, 2, 4
_RESTART = 1
_RESTARTS = (2_000, 10_000, 60_000)
"""Milliseconds after which the service manager starts the agent again when it failed once, twice, more often."""
_FORGET_FAILURES = 86_400
_PATIENCE = 30.0


class ServiceError(MidflightError):
    """The service control manager does not do what we ask for."""


class Status(ctypes.Structure):
    """SERVICE_STATUS."""

    _fields_ = [
        (n, c_uint32) for n in ("type", "state", "accepted", "exit_code", "specific", "check_point", "wait_hint")
    ]


class _Entry(ctypes.Structure):
    """SERVICE_TABLE_ENTRYW."""

    _fields_ = [("name", c_wchar_p), ("main", c_void_p)]


class _Action(ctypes.Structure):
    """SC_ACTION."""

    _fields_ = [("type", c_uint32), ("delay", c_uint32)]


class _FailureActions(ctypes.Structure):
    """SERVICE_FAILURE_ACTIONSW."""

    _fields_ = [
        ("reset", c_uint32),
        ("message", c_wchar_p),
        ("command", c_wchar_p),
        ("count", c_uint32),
        ("actions", ctypes.POINTER(_Action)),
    ]


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "StartServiceCtrlDispatcherW": (c_int32, (c_void_p,)),
    "RegisterServiceCtrlHandlerExW": (c_void_p, (c_wchar_p, c_void_p, c_void_p)),
    "SetServiceStatus": (c_int32, (c_void_p, c_void_p)),
    "OpenSCManagerW": (c_void_p, (c_wchar_p, c_wchar_p, c_uint32)),
    "OpenServiceW": (c_void_p, (c_void_p, c_wchar_p, c_uint32)),
    "CreateServiceW": (
        c_void_p,
        (c_void_p, c_wchar_p, c_wchar_p, *(c_uint32,) * 4, c_wchar_p, c_wchar_p, c_void_p, *(c_wchar_p,) * 3),
    ),
    "ChangeServiceConfig2W": (c_int32, (c_void_p, c_uint32, c_void_p)),
    "StartServiceW": (c_int32, (c_void_p, c_uint32, c_void_p)),
    "ControlService": (c_int32, (c_void_p, c_uint32, c_void_p)),
    "QueryServiceStatus": (c_int32, (c_void_p, c_void_p)),
    "DeleteService": (c_int32, (c_void_p,)),
    "CloseServiceHandle": (c_int32, (c_void_p,)),
}


@cache
def _api() -> Any:
    library: Any = getattr(ctypes, "WinDLL")("advapi32", use_last_error=True)  # noqa: B009 (unknown on other systems)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, list(arguments)
    return library


def _last_error() -> int:
    return int(getattr(ctypes, "get_last_error")())  # noqa: B009


def _failed(what: str) -> ServiceError:
    number = _last_error()
    text = str(getattr(ctypes, "FormatError")(number)).strip().rstrip(".")  # noqa: B009
    return ServiceError(f"{what}: {text} (error {number}); run as an administrator")


# -- being a service ------------------------------------------------------------------------------------------------


class Control:
    """What the body of a service says to the service control manager; also a ``ServiceManager`` of the agent."""

    def __init__(self) -> None:
        self.stop: Callable[[], None] = lambda: None
        """What the body wants to be called when the service is to stop."""
        self.asked_to_stop = False
        self._handle = 0
        self._state = _START_PENDING
        self._lock_status = Status(_OWN_PROCESS, _START_PENDING, 0, 0, 0, 0, 30_000)

    def report(self, state: int, failed: bool = False) -> None:
        """Set the state of the service."""
        status = self._lock_status
        status.state = self._state = state
        status.accepted = (_ACCEPT_STOP | _ACCEPT_PRESHUTDOWN) if state == _RUNNING else 0
        status.exit_code, status.specific = (_SPECIFIC_ERROR, 1) if failed else (0, 0)
        status.check_point = 0 if state in (_RUNNING, _STOPPED) else status.check_point + 1
        status.wait_hint = 0 if state in (_RUNNING, _STOPPED) else round(_PATIENCE * 1000)
        _api().SetServiceStatus(self._handle, ctypes.byref(status))

    def handle(self, control: int) -> int:
        """Answer the service control manager."""
        if control == _CONTROL_INTERROGATE:
            return 0
        if control in (_CONTROL_STOP, _CONTROL_SHUTDOWN, _CONTROL_PRESHUTDOWN):
            self.report(_STOP_PENDING)
            self.asked_to_stop = True
            self.stop()
            return 0
        return _NOT_IMPLEMENTED

    def ready(self, status: str) -> None:
        """See :class:`midflight.agent.agent.ServiceManager`."""
        self.report(_RUNNING)

    def alive(self, status: str) -> None:
        """Nobody asks for it: the service control manager sees whether we live."""

    def stopping(self) -> None:
        """See :class:`midflight.agent.agent.ServiceManager`."""
        self.report(_STOP_PENDING)


def serve(body: Callable[[Control], None]) -> None:
    """Be the service that the service control manager has started; returns when it has stopped. ``body`` calls
    ``Control.ready`` (or what it is given to does) when the service runs, and returns when it is asked to stop.

    Raises:
        ServiceError: nobody started us as a service.
        Exception: what ``body`` raised; the service manager heard of a failure then, and starts us again.
    """
    control = Control()
    errors: list[BaseException] = []
    handler_type = ctypes.CFUNCTYPE(c_uint32, c_uint32, c_uint32, c_void_p, c_void_p)
    main_type = ctypes.CFUNCTYPE(None, c_uint32, c_void_p)

    def handler(number: int, kind: int, data: object, context: object) -> int:
        return control.handle(number)

    handler_pointer = handler_type(handler)

    def main(count: int, words: object) -> None:
        control._handle = _api().RegisterServiceCtrlHandlerExW(NAME, handler_pointer, None)
        control.report(_START_PENDING)
        try:
            body(control)
        except BaseException as error:
            errors.append(error)
        control.report(_STOPPED, failed=bool(errors))

    main_pointer = main_type(main)
    table = (_Entry * 2)(_Entry(NAME, ctypes.cast(main_pointer, c_void_p)), _Entry())
    if not _api().StartServiceCtrlDispatcherW(table):
        number = _last_error()
        if number == _NOT_A_SERVICE:
            raise ServiceError("this is for the service manager alone: start it with `sc start Midflight`")
        raise _failed("the service cannot be started")
    if errors:
        raise errors[0]


# -- installing one -------------------------------------------------------------------------------------------------


class _Handles:
    """The service manager, and a service; closed at the end."""

    def __init__(self) -> None:
        self._open: list[int] = []

    def manager(self) -> int:
        return self._keep(_api().OpenSCManagerW(None, None, _MANAGER_ALL), "the service manager cannot be opened")

    def service(self, manager: int) -> int:
        handle = _api().OpenServiceW(manager, NAME, _ALL_ACCESS)
        if not handle and _last_error() == _NO_SUCH:
            raise ServiceError(f"there is no service {NAME}: install it with midflight agent install")
        return self._keep(handle, f"the service {NAME} cannot be opened")

    def _keep(self, handle: int | None, what: str) -> int:
        if not handle:
            raise _failed(what)
        self._open.append(handle)
        return handle

    def __enter__(self) -> _Handles:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in reversed(self._open):
            _api().CloseServiceHandle(handle)


def install(command: str) -> None:
    """Install the service with this command line; it starts with the machine, and again when it fails.

    Raises:
        ServiceError: it is there already, or we may not.
    """
    with _Handles() as handles:
        manager = handles.manager()
        handle = _api().CreateServiceW(
            manager, NAME, TITLE, _ALL_ACCESS, _OWN_PROCESS, _AUTO_START, _ERROR_NORMAL, command,
            None, None, None, None, None,
        )  # fmt: skip
        if not handle and _last_error() == _EXISTS:
            raise ServiceError(f"there is a service {NAME} already: remove it with midflight agent uninstall")
        service = handles._keep(handle, "the service cannot be made")
        text = ctypes.pointer(c_wchar_p(DESCRIPTION))
        _api().ChangeServiceConfig2W(service, _CONFIG_DESCRIPTION, text)
        actions = (_Action * len(_RESTARTS))(*(_Action(_RESTART, delay) for delay in _RESTARTS))
        recovery = _FailureActions(_FORGET_FAILURES, None, None, len(actions), actions)
        if not _api().ChangeServiceConfig2W(service, _CONFIG_FAILURE, ctypes.byref(recovery)):
            error = _failed("the recovery actions of the service cannot be set")
            _api().DeleteService(service)
            raise error
        # Also when it ends with an error, and not only when it crashes. Wine does not know this one.
        flag = c_int32(1)
        _api().ChangeServiceConfig2W(service, _CONFIG_FAILURE_FLAG, ctypes.byref(flag))


def start() -> None:
    """Start the service, and wait until it runs.

    Raises:
        ServiceError: it does not.
    """
    with _Handles() as handles:
        service = handles.service(handles.manager())
        if not _api().StartServiceW(service, 0, None):
            raise _failed(f"the service {NAME} cannot be started")
        _wait(service, _RUNNING)


def uninstall() -> None:
    """Stop the service, and remove it.

    Raises:
        ServiceError: there is none, or it does not stop.
    """
    with _Handles() as handles:
        service = handles.service(handles.manager())
        status = Status()
        if _api().ControlService(service, _CONTROL_STOP, ctypes.byref(status)):
            _wait(service, _STOPPED)
        elif _last_error() != _NOT_ACTIVE:
            raise _failed(f"the service {NAME} cannot be stopped")
        if not _api().DeleteService(service) and _last_error() != _MARKED:
            raise _failed(f"the service {NAME} cannot be removed")


def _wait(service: int, state: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    status = Status()
    while True:
        if not _api().QueryServiceStatus(service, ctypes.byref(status)):
            raise _failed(f"the state of the service {NAME} cannot be told")
        if status.state == state:
            return
        if status.state == _STOPPED:
            raise ServiceError(f"the service {NAME} has stopped again (error {status.exit_code}): see its log")
        if time.monotonic() >= deadline:
            raise ServiceError(f"the service {NAME} is not where it should be after {_PATIENCE:g} s: see its log")
        time.sleep(0.05)
