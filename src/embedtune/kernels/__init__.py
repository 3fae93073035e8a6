"""Operations with a plain reference beside each fast version; `dispatch` chooses one and says why."""
