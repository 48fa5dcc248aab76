"""Puts hotpatches into processes and takes them out: plan, link, stack check, transaction, ledger, integrity.
OS-neutral: everything that touches a process goes through ``midflight.process``. Standard library alone.

    modules      what a process has loaded, where, and how its frames unwind
    scope        looks a symbol up as the target's own dynamic linker would
    plan         what one hotpatch would change in one process, every expected byte proven
    linker       the payload, bound to one process
    placement    free address space near an image
    stackcheck   decides whether a thread is in the way
    coroutines   finds stacks that no thread owns
    safepoint    decides whether a thread may run a call for us, and runs it
    transaction  what all of them share: context, the stop in which nobody is in the way, giving memory back
    apply        prepare, stop, check, write, go, verify - or back
    withdraw     takes hotpatches out of force in one stop
    revert       out again
    recover      finishes or undoes what a killed engine left
    everywhere   the same over many processes
    startup      whether a process is still being put together by its loader
    ledger       the record inside the target
    journal      announces memory before it carries a ledger
    integrity    code memory against disk plus ledger
    inventory    which processes run what
"""
